"""`python -m benchmarks.training.build SCENE`: a scene's folder, made once.

policy/, fresh/      the weights that training starts from, trained or new
reward/              the reward model that PPO maximises: a last-token head, which both sides can load
*.jsonl              demonstrations, judgments, prompts
tokens.json          real tokens of each update, by task and seed
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, GenerationConfig, LlamaConfig, LlamaForCausalLM

from app.core.folders import write_folder
from app.core.pairing import split_of
from app.core.records import DemonstrationRecord, Message, PreferenceRecord, PromptRecord, RunDir, RunSpec
from app.core.vocabulary import RunKind, Split
from app.jobs.environment import without_secrets
from app.policy.checkpoint import Policy, save_policy
from app.policy.grammar import write_message, write_reply
from app.policy.reward_model import HeadReward, RewardSettings, save_reward_model
from app.policy.starter import make_starter, new_starter
from app.rehearsal.taste import prefers_first
from benchmarks import starter
from benchmarks.report import ROOT
from benchmarks.training import data
from benchmarks.training.scenes import SCENES, THREADS, Scene, Shape, scene_of

SALT = "race"
REWARD_JUDGMENTS = 3_000
"""What the starter's reward model is taught on: other judgments than those of the race."""
Reply = tuple[list[Message], str, str, bool]  # prompt, two replies, whether the first is preferred


def main() -> None:
    """Make the scene's folder where it is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene")
    scene = scene_of(parser.parse_args().scene)
    made_of = {"shape": scene.shape, "tasks": scene.tasks, "rounds": scene.rounds, "heldout": scene.heldout}
    stamp, wanted = scene.folder / "made.json", json.dumps(made_of)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    torch.set_num_threads(THREADS)
    shutil.rmtree(scene.folder, ignore_errors=True)
    scene.folder.mkdir(parents=True)
    weights(scene)
    write_data(scene)
    write_folder(scene.folder / "reward", lambda folder: reward_model(scene, folder))
    tokens = {task: counts(scene, task) for task in ("sft", "reward", "ppo")}
    (scene.folder / "tokens.json").write_text(json.dumps({**tokens, "dpo": tokens["reward"]}), encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")


def weights(scene: Scene) -> None:
    """The policy, and for the starter an untrained one beside it."""
    folder = scene.folder
    if scene.shape is None:
        if not starter.POLICY.is_dir():
            starter.train(seed=0, threads=THREADS)
        shutil.copytree(starter.POLICY, folder / "policy")
        write_folder(folder / "fresh", lambda partial: make_starter(partial))
        return
    policy = new_llama(scene.shape, context=2048 if scene.letters > 1 else 512)
    write_folder(folder / "policy", lambda partial: save_policy(partial, *policy))


def new_llama(shape: Shape, context: int) -> Policy:
    """A Llama of random weights that reads and writes the starter's tokens."""
    tokenizer = new_starter("tiny").tokenizer
    config = LlamaConfig(
        vocab_size=shape.vocabulary or len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return Policy(model, tokenizer)


def write_data(scene: Scene) -> None:
    """Demonstrations, prompts and judgments, enough of each for the settings, plus the held-out side."""
    sft, reward, ppo = (scene.tasks[name] for name in ("sft", "reward", "ppo"))
    # Updates are cut from buckets of like length; the last bucket may hold an uneven batch, so there is one more.
    wanted = (sft["steps"] + 17) * sft["batch"]
    demonstrations = split(replies(scene, seed=1), wanted, scene.heldout)
    write(
        scene.folder / "demonstrations.jsonl",
        (
            DemonstrationRecord(prompt_id=f"d{i}", prompt=prompt, completion=reply, split=side)
            for i, (side, (prompt, reply, _, _)) in enumerate(demonstrations)
        ),
    )
    asked = split(replies(scene, seed=2), min(2000, ppo["steps"] * ppo["batch"]), scene.heldout)
    write(
        scene.folder / "prompts.jsonl",
        (PromptRecord(prompt_id=f"p{i}", prompt=prompt, split=side) for i, (side, (prompt, *_)) in enumerate(asked)),
    )
    judged = split(replies(scene, seed=3), reward["steps"] * reward["batch"], scene.heldout)
    write(scene.folder / "preferences.jsonl", preferences(judged))


def replies(scene: Scene, seed: int) -> Iterator[Reply]:
    """Messages with two different replies and a noisy reader's choice; a row has as many letters as the scene says."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        letters = []
        for _ in range(scene.letters):
            message, facts = write_message(rng)
            letters.append((message, write_reply(rng, facts), write_reply(rng, facts)))
        message, first, second = (" ".join(parts) for parts in zip(*letters, strict=True))
        if first != second and message not in seen:
            seen.add(message)
            yield [{"role": "user", "content": message}], first, second, prefers_first(rng, message, first, second)


def split(rows: Iterator[Reply], train: int, heldout: int) -> Iterator[tuple[Split, Reply]]:
    """So many rows of either side, told apart by the prompt's hash."""
    left = {Split.TRAIN: train, Split.HELDOUT: heldout}
    share = heldout / (train + heldout)
    while any(left.values()):
        row = next(rows)
        side = split_of(SALT, row[0][0]["content"], share)
        if left[side]:
            left[side] -= 1
            yield side, row


def preferences(rows: Iterator[tuple[Split, Reply]]) -> Iterator[PreferenceRecord]:
    """Judgments as a snapshot holds them."""
    for i, (side, (prompt, first, second, first_wins)) in enumerate(rows):
        yield PreferenceRecord(
            judgment_id=f"j{i}",
            comparison_id=f"c{i}",
            prompt_id=f"q{i}",
            prompt=prompt,
            completions=[first, second],
            tiers=[[0], [1]] if first_wins else [[1], [0]],
            annotator="a",
            split=side,
        )


def write(path: Path, records: Any) -> None:
    """Records as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")


def reward_model(scene: Scene, folder: Path) -> None:
    """A head with last-token pooling: fine-tuned for the starter, of random weights for a random policy."""
    if scene.shape is not None:
        body = AutoModelForSequenceClassification.from_pretrained(
            scene.folder / "policy", num_labels=1, dtype=torch.float32, local_files_only=True
        )
        save_reward_model(folder, HeadReward(RewardSettings(), body), data.tokenizer_of(scene.folder))
        return
    run = RunDir(scene.folder / "reward-run")
    run.data.mkdir(parents=True)
    config = {
        "kind": "head",
        "pooling": "last",
        "epochs": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 10**6,
        "threads": THREADS,
    }
    spec = RunSpec(run_id="race", kind=RunKind.REWARD, seed=0, config=config, policy=str(scene.folder / "policy"))
    run.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    few = 1 if scene.name in SCENES else 10
    write(run.preferences, preferences(split(replies(scene, seed=4), REWARD_JUDGMENTS // few, scene.heldout)))
    shutil.copy(scene.folder / "demonstrations.jsonl", run.demonstrations)
    command = [sys.executable, "-m", "app.training", str(run.root)]
    subprocess.run(command, check=True, cwd=ROOT, env=without_secrets(THREADS))
    for file in run.final.iterdir():
        shutil.copy(file, folder)
    (folder / "manifest.json").unlink(missing_ok=True)  # write_folder makes its own
    shutil.copy(run.result, scene.folder / "reward-result.json")
    shutil.rmtree(run.root)


def counts(scene: Scene, task: str) -> dict[str, list[list[int]]]:
    """By seed, for each update: tokens that one network reads, and those of them that are answers'.

    Of PPO the prompts' alone: its answers are not written yet.
    """
    folder, settings = scene.folder, scene.tasks[task]
    found = {}
    for seed in range(scene.rounds):
        take = folder, seed, settings["steps"], settings["batch"]
        if task == "sft":
            updates = [[(len(e), len(e.completion)) for e in rows] for rows in data.sft_batches(*take)]
        elif task == "ppo":
            updates = [[(len(prompt.ids), 0) for prompt in rows] for rows in data.prompt_batches(*take)]
        else:
            updates = [[(p.tokens, len(p.better) + len(p.worse)) for p in rows] for rows in data.pair_batches(*take)]
        found[str(seed)] = [[sum(column) for column in zip(*rows, strict=True)] for rows in updates]
    return found


if __name__ == "__main__":
    main()
