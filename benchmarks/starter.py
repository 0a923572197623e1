"""How long the starter trains and how well it writes: the product's own SFT run, then 1,000 replies at temperature 1.

`python -m benchmarks.starter [--threads N] [--seed N]` leaves the policy in build/starter for the other benchmarks.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from app.core.agreement import wilson
from app.core.configs import SamplingSettings
from app.core.records import RunDir, RunResult, RunSpec
from app.core.vocabulary import RunKind
from app.jobs.environment import without_secrets
from app.jobs.prepare import SIZES
from app.policy.chat import decode, encode_prompt
from app.policy.checker import Check, check
from app.policy.checkpoint import load_policy, stop_ids
from app.policy.engine import generate
from app.policy.grammar import demonstrations, letters
from benchmarks import report

POLICY = report.ROOT / "build" / "starter"
DEMONSTRATIONS, REPLIES = SIZES["standard"].demonstrations, 1_000
FRESH_SEED = 1_000_003  # letters that no training has seen


def train(seed: int, threads: int) -> tuple[RunResult, dict[str, float]]:
    """Train in a process of its own, as the worker does; its result and its costs."""
    root = report.ROOT / "build" / "starter-run"
    shutil.rmtree(root, ignore_errors=True)
    run = RunDir(root)
    run.data.mkdir(parents=True)
    spec = RunSpec(run_id="starter", kind=RunKind.SFT, seed=seed, config={"threads": threads})
    run.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    with run.demonstrations.open("w", encoding="utf-8") as file:
        for record in demonstrations(1, DEMONSTRATIONS, salt="benchmark"):
            file.write(record.model_dump_json() + "\n")
    before, started = os.times(), time.monotonic()
    command = [sys.executable, "-m", "app.training", str(root)]
    subprocess.run(command, check=True, cwd=report.ROOT, env=without_secrets(threads))
    wall, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    shutil.rmtree(POLICY, ignore_errors=True)
    shutil.move(run.final, POLICY)
    result = RunResult.model_validate_json(run.result.read_text(encoding="utf-8"))
    return result, {"wall_s": wall, "cpu_s": cpu}


def replies(policy: Path, n: int = REPLIES) -> list[tuple[str, str]]:
    """(message, reply) for `n` messages that are in no training data, at temperature 1."""
    model, tokenizer = load_policy(policy)
    assert tokenizer.pad_token_id is not None
    messages = [letter.prompt_text for letter in letters(FRESH_SEED, n)]
    ids = [encode_prompt(tokenizer, [{"role": "user", "content": message}]) for message in messages]
    drawn = generate(model, ids, range(n), SamplingSettings(), stop_ids(model, tokenizer), tokenizer.pad_token_id)
    return [(message, decode(tokenizer, g.token_ids)) for message, g in zip(messages, drawn, strict=True)]


def shares(checks: Iterable[Check]) -> dict[str, dict[str, float]]:
    """Name -> share, its 95 % Wilson interval, and among how many."""
    questions: dict[str, tuple[Callable[[Check], bool], Callable[[Check], bool]]] = {
        "grammatical": (lambda c: c.grammatical, lambda c: True),
        "right item": (lambda c: c.right_item, lambda c: c.names_item),
        "right order": (lambda c: c.right_order, lambda c: c.names_order),
        "step fits": (lambda c: c.step_fits, lambda c: c.offers_step),
    }
    all_checks = list(checks)
    found = {}
    for name, (asked, among) in questions.items():
        answers = [asked(c) for c in all_checks if among(c)]
        low, high = wilson(sum(answers), len(answers))
        found[name] = {"share": sum(answers) / max(1, len(answers)), "low": low, "high": high, "n": len(answers)}
    return found


def main() -> None:
    """Train, sample, check, report."""
    parser = argparse.ArgumentParser(description="Train the starter and read its replies.")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result, costs = train(options.seed, options.threads)
    written = replies(POLICY)
    found = shares(check(*pair) for pair in written)
    data = shares(check(*letter) for letter in letters(FRESH_SEED, REPLIES))
    distinct = len({reply for _, reply in written})
    figures: dict[str, Any] = {
        "seed": options.seed,
        "demonstrations": DEMONSTRATIONS,
        "parameters": load_policy(POLICY).model.num_parameters(),
        "steps": result.step,
        **costs,
        **result.metrics,
        "distinct": distinct,
        "replies": found,
        "demonstrations_themselves": data,
    }

    def line(name: str) -> str:
        x = found[name]
        return f"{report.percent(x['share'])} ({100 * x['low']:.1f} to {100 * x['high']:.1f}; n = {x['n']})"

    report.write(
        "starter",
        figures,
        [
            ("training, wall", f"{costs['wall_s']:.0f} s", "at most 150 s on an idle 2-core machine"),
            ("training, CPU", f"{costs['cpu_s']:.0f} s", ""),
            ("distinct among 1,000 replies", str(distinct), "at least 900"),
            ("grammatical", line("grammatical"), "at least 94 %"),
            ("right item, where one is named", line("right item"), "at least 88 %"),
            ("right order number, where one is cited", line("right order"), ""),
            ("step fits, where one is offered", line("step fits"), ""),
            ("perplexity on held-out demonstrations", f"{result.metrics['perplexity']:.3f}", ""),
        ],
        "The demonstrations themselves err: "
        + ", ".join(f"{name} {report.percent(x['share'])}" for name, x in data.items())
        + ".",
    )


if __name__ == "__main__":
    main()
