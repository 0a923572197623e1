"""`python -m benchmarks.training.quality TASK SCENE MODEL`: what a trained model is worth, as JSON.

One judge for both sides, by transformers' own forward pass: neither side's code computes a figure of its own model.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from app.core.agreement import wilson
from app.core.configs import SamplingSettings
from app.core.records import PromptRecord
from app.core.vocabulary import FinishReason, Split
from app.policy.chat import decode
from app.policy.engine import generate
from app.policy.reward_model import load_reward_model
from app.rehearsal.taste import utility
from benchmarks.training import data
from benchmarks.training.scenes import THREADS, scene_of

ROWS = 32
Figures = dict[str, Any]


def main() -> None:
    """Print the figures of one model."""
    task, scene, model = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        figures = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}[task](scene, model)
    print(json.dumps(figures))


def sft(scene: Path, folder: Path) -> Figures:
    """Negative log-likelihood of held-out answers, nats per token."""
    examples = data.demonstrations(scene, Split.HELDOUT, data.tokenizer_of(scene))
    found = logprobs(causal(folder), [(e.prompt, e.completion) for e in examples])
    tokens = sum(len(e.completion) for e in examples)
    return {"nll": -sum(float(x) for x in found) / tokens, "n": tokens}


def reward(scene: Path, folder: Path) -> Figures:
    """Held-out accuracy against the noisy labels, with Wilson's interval, and the Bradley-Terry loss."""
    judged = data.pairs(scene, Split.HELDOUT, data.tokenizer_of(scene))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, local_files_only=True
    ).eval()
    rows = [p.prompt + answer for p in judged for answer in (p.better, p.worse)]
    scores = torch.cat([model(input_ids=ids, attention_mask=mask).logits[:, 0] for ids, mask in padded(rows)])
    return preference(scores[0::2] - scores[1::2])


def dpo(scene: Path, folder: Path) -> Figures:
    """The same of the implicit reward beta (log pi - log ref)."""
    judged = data.pairs(scene, Split.HELDOUT, data.tokenizer_of(scene))
    rows = [(p.prompt, answer) for p in judged for answer in (p.better, p.worse)]
    policy, reference = (torch.stack(logprobs(causal(f), rows)) for f in (folder, scene / "policy"))
    beta = scene_of(scene.name).tasks["dpo"]["beta"]
    implicit = beta * (policy - reference)
    return preference(implicit[0::2] - implicit[1::2])


def ppo(scene: Path, folder: Path) -> Figures:
    """Score and KL from the reference of answers to the held-out prompts, one each, from the same seeds.

    `objective` is what both sides maximise: score, less 1 for a missing end, less beta times KL. `taste` is the hidden
    taste's mean utility, which neither side sees.
    """
    tokenizer = data.tokenizer_of(scene)
    settings = scene_of(scene.name).tasks["ppo"]
    asked = data.prompts(scene, Split.HELDOUT, tokenizer)
    model = causal(folder)
    sampling = SamplingSettings(max_tokens=settings["max_tokens"])
    answers = generate(
        model,
        [p.ids for p in asked],
        range(len(asked)),
        sampling,
        int(tokenizer.eos_token_id),
        int(tokenizer.pad_token_id),
    )
    rows = [(p.ids, a.token_ids) for p, a in zip(asked, answers, strict=True)]
    kl = torch.stack(logprobs(model, rows)) - torch.stack(logprobs(causal(scene / "policy"), rows))
    score = load_reward_model(scene / "reward").score(*zip(*rows, strict=True))
    cut = torch.tensor([a.finish is not FinishReason.STOP for a in answers]).float()
    objective = score - cut - settings["beta"] * kl
    messages = {r.prompt_id: str(r.prompt[-1]["content"]) for r in data.read(scene / "prompts.jsonl", PromptRecord)}
    taste = [
        utility(messages[p.prompt_id], decode(tokenizer, a.token_ids)) for p, a in zip(asked, answers, strict=True)
    ]
    lengths = torch.tensor([float(len(a.token_ids)) for a in answers])
    every = {"score": score, "kl": kl, "objective": objective, "taste": torch.tensor(taste), "length": lengths}
    figures: Figures = {name: float(values.mean()) for name, values in every.items()}
    figures |= {f"{name}_se": float(values.std() / len(asked) ** 0.5) for name, values in every.items()}
    return figures | {"cut": float(cut.mean()), "n": len(asked)}


def preference(margin: Tensor) -> Figures:
    """Accuracy with its interval and the logistic loss of margins, better minus worse, [P]."""
    right = float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    low, high = wilson(right, len(margin))
    accuracy = {"accuracy": right / len(margin), "low": low, "high": high, "n": len(margin)}
    return {**accuracy, "loss": float(-F.logsigmoid(margin).mean())}


def causal(folder: Path) -> PreTrainedModel:
    """A language model, in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def padded(rows: Sequence[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded ids and attention masks, ROWS at a time."""
    for start in range(0, len(rows), ROWS):
        some = [torch.tensor(row) for row in rows[start : start + ROWS]]
        yield pad_sequence(some, True, 0), pad_sequence([torch.ones_like(row) for row in some], True, 0)


def logprobs(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[Tensor]:
    """log pi(answer | prompt) of each row, nats."""
    found: list[Tensor] = []
    place = 0
    for ids, mask in padded([prompt + answer for prompt, answer in rows]):
        every = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        chosen = every.gather(-1, ids[:, 1:, None])[..., 0]
        for row in chosen:
            prompt, answer = rows[place]
            found.append(row[len(prompt) - 1 : len(prompt) + len(answer) - 1].sum())
            place += 1
    return found


if __name__ == "__main__":
    main()
