"""How fast the starter is sampled: tokens per second at batch 64 and the time of one pair, beside `model.generate`.

`python -m benchmarks.sampling [--threads N] [--repeats N]` takes the policy that benchmarks.starter left.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from app.core.configs import SamplingSettings
from app.policy import engine
from app.policy.chat import encode_prompt
from app.policy.checkpoint import Policy, load_policy, stop_ids
from app.policy.decoders import GenericDecoder
from app.policy.grammar import letters
from benchmarks import report
from benchmarks.starter import FRESH_SEED, POLICY

BATCH, BATCHES = 64, 4
Sampler = Callable[[Policy, Sequence[list[int]], int], int]


def ours(policy: Policy, prompts: Sequence[list[int]], seed: int) -> int:
    """Sample once a prompt; how many tokens came."""
    model, tokenizer = policy
    seeds = range(seed, seed + len(prompts))
    pad = tokenizer.pad_token_id
    assert pad is not None
    answers = engine.generate(model, prompts, seeds, SamplingSettings(), stop_ids(model, tokenizer), pad)
    return sum(len(a.token_ids) for a in answers)


def general(policy: Policy, prompts: Sequence[list[int]], seed: int) -> int:
    """The same loop over the model's own forward."""
    fast = engine.decoder_for
    engine.decoder_for = lambda model, capacity: GenericDecoder(model)
    try:
        return ours(policy, prompts, seed)
    finally:
        engine.decoder_for = fast


def transformers(policy: Policy, prompts: Sequence[list[int]], seed: int) -> int:
    """`model.generate` on the left-padded batch."""
    model, tokenizer = policy
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    limit = SamplingSettings().max_tokens
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=limit
        )
    return int((out[:, width:] != tokenizer.pad_token_id).sum())


SAMPLERS: dict[str, Sampler] = {"ours": ours, "ours, general path": general, "transformers": transformers}


def measure(policy: Policy, prompts: Sequence[list[int]], repeats: int) -> dict[str, dict[str, float]]:
    """Medians over interleaved repeats: tokens per second of batches of 64, and milliseconds of one pair."""
    speeds: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    pairs: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for repeat in range(repeats + 1):
        for name, sample in SAMPLERS.items():
            started, tokens = time.perf_counter(), 0
            for i in range(BATCHES):
                tokens += sample(policy, prompts[i * BATCH : (i + 1) * BATCH], repeat * 1000 + i * BATCH)
            spent = time.perf_counter() - started
            began = time.perf_counter()
            sample(policy, [prompts[repeat]] * 2, repeat)
            if repeat:  # the first round warms up
                speeds[name].append(tokens / spent)
                pairs[name].append((time.perf_counter() - began) * 1000)
    return {n: {"tokens_per_s": median(speeds[n]), "pair_ms": median(pairs[n])} for n in SAMPLERS}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Time the sampling loop.")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not POLICY.is_dir():
        raise SystemExit("There is no starter yet: run `make bench-starter` first.")
    policy = load_policy(POLICY)
    messages = [letter.prompt_text for letter in letters(FRESH_SEED, BATCH * BATCHES)]
    prompts = [encode_prompt(policy.tokenizer, [{"role": "user", "content": message}]) for message in messages]
    found = measure(policy, prompts, options.repeats)
    rows = [
        (f"{name}, batch of 64", f"{x['tokens_per_s']:,.0f} tokens/s", "at least 5,000" if name == "ours" else "")
        for name, x in found.items()
    ]
    rows += [(f"{name}, one pair", f"{x['pair_ms']:.0f} ms", "") for name, x in found.items()]
    report.write(
        "sampling",
        {"threads": torch.get_num_threads(), "repeats": options.repeats, "batch": BATCH, **found},
        rows,
        f"Medians of {options.repeats} interleaved rounds, temperature 1, {torch.get_num_threads()} threads.",
    )


if __name__ == "__main__":
    main()
