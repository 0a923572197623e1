"""`python -m app.jobs.skill_fit VOTES SKILLS`: fit the votes of one file, write the estimates to another.

The model is Dawid and Skene's with one coin a person: somebody decides a pair as the truth has it with probability
s, whichever way that is. crowd-kit's DawidSkene takes known answers (gold) but has a coin for each way; every vote is
entered a second time with both answers exchanged, which makes the two coins one.

The interval is not the fit's own, which is too sure with two votes a pair. For each person the others' fitted coins say
how likely each of their votes is right, their own vote left out; the likelihood of their one coin over all their votes,
with a flat prior, gives the median and the 95 % interval. The others' coins are held at their estimates.
"""

import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "one-coin Dawid-Skene"
LEAST = 10  # votes that others, or gold, speak to; below that there is no estimate
GRID = np.linspace(0.0005, 0.9995, 1000)


def main() -> None:
    """Read, fit, write."""
    asked, answered = Path(sys.argv[1]), Path(sys.argv[2])
    given = json.loads(asked.read_text())
    partial = answered.with_suffix(".partial")
    partial.write_text(json.dumps(estimates(given["said"], given["gold"])))
    partial.replace(answered)


def estimates(said: Sequence[tuple[str, str, bool]], gold: Mapping[str, bool]) -> list[dict[str, Any]]:
    """One estimate a person with enough votes. `said` are (pair, person, whether the first is better)."""
    by_pair: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for pair, person, first in said:
        by_pair[pair].append((person, first))
    # A lone vote on an unknown pair agrees with itself only.
    spoken = {pair: votes for pair, votes in by_pair.items() if len(votes) > 1 or pair in gold}
    if not spoken:
        return []
    coins = _coins(spoken, gold)
    evidence: dict[str, list[float]] = defaultdict(list)
    for pair, votes in spoken.items():
        for person, first in votes:
            others = sum((1 if said else -1) * _weight(coins[who]) for who, said in votes if who != person)
            told = 1 / (1 + math.exp(max(-30.0, min(30.0, -others if first else others))))
            likely = float(gold[pair] == first) if pair in gold else told
            evidence[person].append(likely)
    return [_estimate(person, likely) for person, likely in sorted(evidence.items()) if len(likely) >= LEAST]


def _coins(spoken: Mapping[str, Sequence[tuple[str, bool]]], gold: Mapping[str, bool]) -> dict[str, float]:
    """Everybody's coin as crowd-kit fits it, drawn a little toward one half where there are few votes."""
    import pandas as pd
    from crowdkit.aggregation.classification.dawid_skene import DawidSkene

    rows = [
        (f"{mirror}{pair}", person, int(first != bool(mirror)))
        for pair, votes in spoken.items()
        for person, first in votes
        for mirror in ("", "-")
    ]
    data = pd.DataFrame(rows, columns=["task", "worker", "label"])
    known = {f"{mirror}{pair}": int(first != bool(mirror)) for pair, first in gold.items() for mirror in ("", "-")}
    labels = pd.Series(known) if known else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own, about pandas to come
        fitted = DawidSkene(n_iter=50).fit(data, true_labels=labels)
    assert fitted.errors_ is not None, "the model was not fitted"
    errors = {key: (float(row.get(0, 0.0)), float(row.get(1, 0.0))) for key, row in fitted.errors_.iterrows()}
    votes = data["worker"].value_counts() / 2
    coins = {}
    for person, n in votes.items():
        right = (errors.get((person, 0), (0.0, 0.0))[0] + errors.get((person, 1), (0.0, 0.0))[1]) / 2
        coins[str(person)] = (right * n + 1) / (n + 2)
    return coins


def _weight(coin: float) -> float:
    """What one vote of this person says, in log odds."""
    return math.log(coin / (1 - coin))


def _estimate(person: str, likely: Sequence[float]) -> dict[str, Any]:
    p = np.asarray(likely)[:, None]
    log = np.log(p * GRID + (1 - p) * (1 - GRID)).sum(axis=0)
    mass = np.exp(log - log.max()).cumsum()
    low, middle, high = (float(GRID[np.searchsorted(mass, q * mass[-1])]) for q in (0.025, 0.5, 0.975))
    return {
        "account_id": person,
        "model": MODEL,
        "skill": middle,
        "low": low,
        "high": high,
        "judgments": len(likely),
    }


if __name__ == "__main__":
    main()
