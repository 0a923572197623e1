"""`make bench-rehearsal`: the whole loop on seeds 0, 1 and 2, each install judged on from 300 to 500 to 1,000 times.

After each turn the promotion is rolled back, so that all judgments of a seed are on answers of the same SFT policy and
the larger sets contain the smaller. `ARGS="--seeds 0 --judgments 300"` runs less. `ARGS="--dpo --best-of 4 16"` adds
what PPO is read beside: DPO from the same judgments, and the best of n answers by the same reward model.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.rehearsal.installation import Installation
from app.rehearsal.rehearse import Rehearsal
from benchmarks.report import RESULTS, Row, write

SEEDS, JUDGMENTS, PEOPLE = (0, 1, 2), (300, 500, 1000), 3
MODEL_AT_LEAST = {300: 0.72, 500: 0.77}
WINS_AT_LEAST = {300: 0.72, 500: 0.77}


def rehearse(
    seed: int, judgments: Sequence[int], keep: Path | None, dpo: bool = False, best_of: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """One install; a turn of the loop after each number of judgments, and what PPO is to be read beside."""
    turns = []
    with tempfile.TemporaryDirectory(prefix="pairwright-bench-", ignore_cleanup_errors=True) as scratch:
        began = time.monotonic()
        with Installation(keep / f"seed-{seed}" if keep else Path(scratch), print) as installation:
            rehearsal = Rehearsal(installation, seed, print)
            rehearsal.stages["start"] = round(time.monotonic() - began, 1)
            rehearsal.prepare(PEOPLE)
            for wanted in judgments:
                if turns:
                    installation.roll_back()
                rehearsal.judge(wanted)
                turn = {"judgments": wanted, **rehearsal.turn(), "label_agreement": rehearsal.label_agreement}
                if not turns:
                    turn["total_s"] = round(time.monotonic() - began, 1)
                if dpo:
                    turn["dpo"] = {**rehearsal.dpo(), "seconds": rehearsal.stages["dpo"]}
                if best_of:
                    turn["best_of"] = rehearsal.best_of(best_of)
                turns.append(turn)
    return turns


def rows_of(turns: Sequence[dict[str, Any]]) -> list[Row]:
    """The table: means over seeds, the worst seed beside them."""
    rows: list[Row] = []
    for wanted in sorted({turn["judgments"] for turn in turns}):
        some = [turn for turn in turns if turn["judgments"] == wanted]
        model = [turn["reward_model"]["accuracy_noiseless"] for turn in some]
        bag = [turn["reward_model"]["bag_of_words"] for turn in some]
        longer = [turn["reward_model"]["longer_wins"] for turn in some]
        wins = [turn["ppo_vs_sft"]["win_rate"] for turn in some]
        before, after = ([turn["grammatical"][when] for turn in some] for when in ("before", "after"))
        seconds = [turn["stages_s"]["reward_model"] + turn["stages_s"]["ppo"] for turn in some]
        least = min(a - b for a, b in zip(model, bag, strict=True))
        floor = "never below; 3 points above from 1,000" if wanted < 1000 else "3 points above"
        rows += [
            (f"Reward model from {wanted} judgments, noiseless labels", _spread(model), _least(MODEL_AT_LEAST, wanted)),
            (f"- bag of words on the same judgments ({wanted})", _spread(bag), f"{floor} (least: {100 * least:+.1f})"),
            (f"- longer wins ({wanted})", _spread(longer), "under .65"),
            (
                f"PPO wins against SFT ({wanted})",
                _spread(wins),
                ", ".join(filter(None, [_least(WINS_AT_LEAST, wanted), "no seed under .66"])),
            ),
            (f"- grammatical, SFT then PPO ({wanted})", f"{_mean(before)}, {_mean(after)}", "within .05"),
            (f"- reward model and PPO, seconds, the slowest ({wanted})", f"{max(seconds):.0f}", "at most 180"),
        ]
        rows += _beside(some, wanted)
        whole = [turn["total_s"] for turn in some if "total_s" in turn]
        if whole:
            rows.append(
                (f"- the whole rehearsal of {wanted}, seconds, the slowest", f"{max(whole):.0f}", "at most 600")
            )
    agreement = [turn["label_agreement"] for turn in turns if "label_agreement" in turn]
    if agreement:
        rows.append(("Noisy labels agree with the noiseless ones", _spread(agreement), "0.80 to 0.87"))
    return rows


def _beside(turns: Sequence[dict[str, Any]], wanted: int) -> list[Row]:
    """DPO and best-of-n, where they were measured."""
    rows: list[Row] = []
    learnt = [turn["dpo"] for turn in turns if "dpo" in turn]
    if learnt:
        wins, kl = [one["dpo_vs_sft"]["win_rate"] for one in learnt], [one["kl"] for one in learnt]
        rows.append((f"- DPO wins against SFT ({wanted})", f"{_spread(wins)} at {_mean(kl)} nats", ""))
    chosen = [turn["best_of"] for turn in turns if "best_of" in turn]
    for n in chosen[0] if chosen else ():
        wins = [one[n]["win_rate"] for one in chosen if n in one]
        bound = f"{_spread(wins)} at no more than {chosen[0][n]['kl_bound']:.2f} nats"
        rows.append((f"- the best of {n} by the reward model wins against SFT ({wanted})", bound, ""))
    return rows


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def _spread(values: Sequence[float]) -> str:
    return f"{_mean(values)} ({min(values):.3f} to {max(values):.3f})"


def _least(wanted: dict[int, float], judgments: int) -> str:
    return f"at least {wanted[judgments]:.2f}" if judgments in wanted else ""


def main() -> None:
    """Run what was asked for, keeping the figures of each turn as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--judgments", type=int, nargs="+", default=JUDGMENTS)
    parser.add_argument("--keep", type=Path, help="a folder for the data folders, which then stay")
    parser.add_argument("--add", action="store_true", help="keep the figures of other seeds that are there")
    parser.add_argument("--dpo", action="store_true", help="also train and measure DPO after each turn")
    parser.add_argument("--best-of", type=int, nargs="+", default=[], metavar="N", help="also measure the best of N")
    given = parser.parse_args()
    path = RESULTS / "rehearsal.json"
    turns: list[dict[str, Any]] = []
    if given.add and path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))["figures"]["turns"]
        turns = [turn for turn in known if turn["seed"] not in given.seeds]
    for seed in given.seeds:
        turns += rehearse(seed, sorted(given.judgments), given.keep, given.dpo, given.best_of)
        write("rehearsal", {"turns": turns}, rows_of(turns), "Mean over seeds, with the worst and the best.")


if __name__ == "__main__":
    main()
