import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from app.core.configs import SFTConfig
from app.core.records import DemonstrationRecord, RunSpec
from app.core.vocabulary import RunKind, Split
from app.policy.checkpoint import load_policy
from app.policy.grammar import demonstrations
from app.policy.starter import new_starter
from app.training.__main__ import main
from app.training.failures import RunFailure
from app.training.sft import Recipe, _accumulate, completion_logits, recipe, sharpen
from app.training.sft_data import Example, collate, cuts, encode, plan

SMALL = {"starter": "tiny", "max_steps": 8, "batch_size": 8, "curriculum": 0.25, "threads": 1}
RECORDS = list(demonstrations(seed=1, n=120, salt="s"))


def run_directory(root: Path, config=None, records=RECORDS, policy=None) -> Path:
    (root / "data").mkdir(parents=True)
    spec = RunSpec(run_id=root.name, kind=RunKind.SFT, seed=3, config={**SMALL, **(config or {})}, policy=policy)
    (root / "spec.json").write_text(spec.model_dump_json())
    lines = "".join(record.model_dump_json() + "\n" for record in records)
    (root / "data" / "demonstrations.jsonl").write_text(lines)
    return root


def rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = run_directory(tmp_path_factory.mktemp("sft") / "whole", {"eval_every": 4, "checkpoint_every": 3})
    assert main([str(root)]) == 0
    return root


def test_a_run_leaves_a_policy_that_loads_plainly(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "final")
    tokenizer = AutoTokenizer.from_pretrained(finished / "final")
    assert len(tokenizer) == model.config.vocab_size
    ours = load_policy(finished / "final").model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_reports_its_held_out_loss(finished):
    metrics = json.loads((finished / "result.json").read_text())["metrics"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["heldout_nll"]))
    assert metrics["heldout_n"] == sum(r.split is Split.HELDOUT for r in RECORDS)
    assert metrics["demonstrations"] == sum(r.split is Split.TRAIN for r in RECORDS)
    assert metrics["too_long"] == 0
    last = [r for r in rows(finished / "metrics.jsonl") if r["phase"] == "eval"][-1]
    assert last["eval_loss"] == pytest.approx(metrics["heldout_nll"])


def test_a_run_shows_answers_to_held_out_prompts_as_it_goes(finished):
    samples = rows(finished / "samples.jsonl")
    assert [s["step"] for s in samples] == [4] * 4 + [8] * 4
    heldout = {r.prompt_id for r in RECORDS if r.split is Split.HELDOUT}
    assert {s["prompt_id"] for s in samples} <= heldout


def test_the_loss_falls(tmp_path):
    root = run_directory(tmp_path / "falls", {"max_steps": 30, "log_every": 1, "warmup_steps": 2})
    assert main([str(root)]) == 0
    losses = [r["loss"] for r in rows(root / "metrics.jsonl") if r["phase"] == "train"]
    assert losses[0] > 6.5
    assert losses[-1] < losses[0] - 0.8


def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(finished, tmp_path):
    root = run_directory(tmp_path / "killed", {"eval_every": 4, "checkpoint_every": 3})
    command = [sys.executable, "-m", "app.training", str(root)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((root / "checkpoints").glob("step-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "result.json").exists(), "the run ended before it could be killed"
    assert main([str(root)]) == 0
    whole = load_file(finished / "final" / "model.safetensors")
    resumed = load_file(root / "final" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((root / "result.json").read_text())["metrics"]["heldout_nll"] == pytest.approx(
        json.loads((finished / "result.json").read_text())["metrics"]["heldout_nll"], abs=0
    )


def test_a_policy_that_exists_is_trained_further(finished, tmp_path):
    policy = tmp_path / "base"
    shutil.copytree(finished / "final", policy)
    root = run_directory(tmp_path / "further", {"max_steps": 2}, policy=os.path.relpath(policy, tmp_path / "further"))
    assert main([str(root)]) == 0
    before, after = (load_file(f / "model.safetensors") for f in (policy, root / "final"))
    changes = [float((before[n] - after[n]).abs().max()) for n in before]
    assert 0 < max(changes) < 1e-4


def test_without_demonstrations_the_run_says_so(tmp_path):
    root = run_directory(tmp_path / "none", records=[r for r in RECORDS if r.split is Split.HELDOUT])
    assert main([str(root)]) == 4
    error = json.loads((root / "error.json").read_text())
    assert error["kind"] == "data"
    assert "no demonstration to learn from" in error["message"]


def test_held_out_demonstrations_are_never_learnt_from(tmp_path):
    """The same weights come out, whatever the held-out answers say."""
    changed = [r.model_copy(update={"completion": "Nonsense."}) if r.split is Split.HELDOUT else r for r in RECORDS]
    one = run_directory(tmp_path / "one", {"max_steps": 3})
    two = run_directory(tmp_path / "two", {"max_steps": 3}, records=changed)
    assert main([str(one)]) == main([str(two)]) == 0
    first, second = (load_file(r / "final" / "model.safetensors") for r in (one, two))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_what_the_configuration_leaves_open_depends_on_what_is_trained():
    assert recipe(SFTConfig(), new=True) == Recipe(3e-3, 3e-3, 3.0, 0.15, 1.15)
    assert recipe(SFTConfig(), new=False) == Recipe(2e-5, None, 1.0, 0.0, 1.0)
    assert recipe(SFTConfig(muon_learning_rate=0, copy_weight=1), new=True) == Recipe(3e-3, None, 1.0, 0.15, 1.15)


# ---- data ----------------------------------------------------------------------------------------------------------


def record(prompt, completion):
    return DemonstrationRecord(
        prompt_id=prompt, prompt=[{"role": "user", "content": prompt}], completion=completion, split=Split.TRAIN
    )


def test_copied_tokens_are_the_telling_ones_of_the_prompt():
    tokenizer = new_starter("tiny").tokenizer
    records = [
        record("My kettle is late. Order 4821.", "Order 4821, kettle."),
        record("My lamp is late. Order 5.", "Order 9."),
        record("My tent is late. Order 7.", "late"),
        record("My clock is late.", "clock"),
    ]
    examples, skipped = encode(records, tokenizer, max_length=64)
    assert skipped == 0
    text = [tokenizer.decode([t]) for t, c in zip(examples[0].completion, examples[0].copied, strict=True) if c]
    assert text == ["4", "8", "2", "1", " kettle"]
    assert not any(examples[1].copied)
    assert not any(examples[2].copied)


def test_an_example_that_is_too_long_is_left_out_and_counted():
    tokenizer = new_starter("tiny").tokenizer
    examples, skipped = encode([record("a", "b"), record("a", "b " * 100)], tokenizer, max_length=40)
    assert (len(examples), skipped) == (1, 1)
    assert examples[0].completion[-1] == tokenizer.eos_token_id


def example(prompt, completion, copied=0):
    return Example("p", [5] * prompt, [6] * completion, [i < copied for i in range(completion)])


def test_the_plan_begins_with_the_examples_that_copy_most_and_then_visits_each_once():
    examples = [example(3, 4 + i % 5, copied=4 if i % 10 == 0 else 0) for i in range(100)]
    shape = {"batch_size": 8, "epochs": 1, "curriculum": 0.25, "curriculum_rows": 0.1}
    batches = plan(examples, seed=1, **shape)
    # 13 batches of the pass, a quarter of them as curriculum.
    assert all(i % 10 == 0 for batch in batches[:3] for i in batch)
    assert [len(b) for b in batches[:3]] == [16, 16, 16]
    assert sorted(i for batch in batches[3:] for i in batch) == list(range(100))
    assert batches == plan(examples, seed=1, **shape)
    assert batches != plan(examples, seed=2, **shape)
    short = plan(examples, seed=1, **shape, most=4)
    assert [len(b) for b in short] == [16, 8, 8, 8]


def test_like_lengths_share_a_batch():
    examples = [example(2, 1 + i % 50) for i in range(1600)]
    batches = plan(examples, seed=1, batch_size=16, epochs=1, curriculum=0, curriculum_rows=0.1)
    padded = sum(max(len(examples[i]) for i in b) * len(b) for b in batches)
    assert padded < 1.1 * sum(map(len, examples))


def test_only_the_answer_is_a_target():
    batch = collate([example(2, 3, copied=1), example(1, 1)], pad_id=0)
    assert batch.ids.tolist() == [[5, 5, 6, 6, 6], [5, 6, 0, 0, 0]]
    assert batch.targets.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]
    assert batch.copied.tolist() == [[False, False, True, False, False], [False] * 5]


def test_an_update_is_cut_so_that_little_of_a_pass_is_padding():
    lengths = [10] * 12 + [11, 40, 9, 41, 44]
    passes = cuts([example(1, length - 1) for length in lengths], None)
    assert [[len(e) for e in part] for part in passes] == [[9, *[10] * 12, 11], [40, 41, 44]]
    # A few rows make no pass of their own, however different they are.
    assert [len(part) for part in cuts([example(1, 1), example(1, 30)], None)] == [2]
    assert [len(part) for part in cuts([example(1, 1)] * 7, 3)] == [3, 3, 1]


# ---- the loss ------------------------------------------------------------------------------------------------------


def gradient(model, rows, weight, micro, pad_id=0):
    model.zero_grad()
    loss, accuracy = _accumulate(model, rows, weight, micro, pad_id)
    return loss, accuracy, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_micro_batches_and_padding_change_neither_loss_nor_gradient():
    model = new_starter("tiny").model
    examples, _ = encode(RECORDS[:8], new_starter("tiny").tokenizer, 512)
    whole = gradient(model, examples, 2.0, 8)
    for micro, pad in ((1, 0), (3, 0), (8, 7)):
        pieces = gradient(model, examples, 2.0, micro, pad)
        assert pieces[:2] == pytest.approx(whole[:2], rel=1e-5)
        torch.testing.assert_close(pieces[2], whole[2], atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_mean_over_answer_tokens_of_their_negative_log_probability():
    model = new_starter("tiny").model
    row = Example("p", [5, 6], [7, 1], [True, False])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0], -1)
    first, second = -float(logprobs[1, 7]), -float(logprobs[2, 1])
    loss, _, plain = gradient(model, [row], 1.0, 1)
    assert loss == pytest.approx((first + second) / 2, rel=1e-5)
    only_first = gradient(model, [Example("p", [5, 6], [7], [True])], 1.0, 1)[2]
    heavy = gradient(model, [row], 3.0, 1)[2]
    # (3 g1 + g2) / 4 from (g1 + g2) / 2 and g1.
    torch.testing.assert_close(heavy, (2 * plain + 2 * only_first) / 4, atol=1e-5, rtol=1e-3)


def test_a_sharpened_model_answers_as_at_a_lower_temperature():
    model = new_starter("tiny").model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        sharpen(model, 1.25)
        torch.testing.assert_close(model(input_ids=ids).logits, before / 0.8, atol=1e-5, rtol=1e-5)


def test_sharpness_is_refused_where_it_would_not_be_exact(tmp_path):
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    sharpen(GPT2LMHeadModel(config), 1.0)
    with pytest.raises(RunFailure, match="Llama"):
        sharpen(GPT2LMHeadModel(config), 1.1)


def test_the_short_way_to_the_logits_is_the_models_own():
    model = new_starter("tiny").model
    examples, _ = encode(RECORDS[:4], new_starter("tiny").tokenizer, 512)
    batch = collate(examples, 0)
    logits, targets = completion_logits(model, batch)
    mask = (batch.ids != 0).long()
    full = model(input_ids=batch.ids, attention_mask=mask).logits[:, :-1][batch.targets[:, 1:]]
    torch.testing.assert_close(logits, full, atol=1e-5, rtol=1e-5)
    assert targets.tolist() == [t for e in examples for t in e.completion]
