"""What now: the one next step of a project, drawn from its live numbers."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.vocabulary import LIVE_STATUSES, CheckpointKind, RunKind, RunStatus
from app.store.judgments import Summary
from app.store.models import Checkpoint, Run
from app.store.runs import MIN_HELDOUT, MIN_TRAIN
from app.web.words import KINDS, duration, figure, percent

# Below the first a reward model is mostly noise; the figures in docs/benchmarks.md begin at the second.
WORTH_TRAINING = 100
GOOD_START = 300


@dataclass(frozen=True)
class Aside:
    """What may be done instead: a link (`href`) or a button that posts (`post`)."""

    action: str
    href: str = ""
    post: str = ""


@dataclass(frozen=True)
class Step:
    """The next step: a claim, its reason, and one action, a link (`href`) or a button that posts (`post`)."""

    title: str
    why: str
    action: str = ""
    href: str = ""
    post: str = ""
    here: str = "judgments"
    asides: tuple[Aside, ...] = ()


@dataclass(frozen=True)
class State:
    """What the next step is drawn from. Runs, policies and reward models newest first.

    `promoted` are the policies that were ever current, `learnt_from` the training judgments that the newest model which
    learnt from any was given: a reward model, or a policy by DPO.
    """

    base: str
    ready: int
    summary: Summary
    runs: Sequence[Run]
    policies: Sequence[Checkpoint]
    reward_models: Sequence[Checkpoint]
    current: Checkpoint | None
    promoted: frozenset[uuid.UUID]
    learnt_from: int
    heldout_share: float
    may_train: bool


def next_step(state: State) -> Step:
    """The first of these that applies: watch what trains, mend what failed, promote what is new, train, judge."""
    live = next((run for run in reversed(state.runs) if run.status in LIVE_STATUSES), None)
    if live is not None:
        return watch(state, live)
    newest = state.runs[0] if state.runs else None
    if newest is not None and newest.status is RunStatus.FAILED:
        return mend(state, newest)
    candidate = unpromoted(state)
    if candidate is not None and state.may_train:
        return promote(state, candidate)
    return train_or_judge(state)


def watch(state: State, run: Run) -> Step:
    """Something trains: it can be watched, and judging goes on meanwhile."""
    name = f"{KINDS[run.kind]} {run.number}"
    href = f"{state.base}/runs/{run.id}"
    here = "reward" if run.kind is RunKind.REWARD else "policy"
    asides = (Aside("Judge meanwhile", f"{state.base}/judge"),) if state.may_train else ()
    if run.status is RunStatus.PAUSED:
        why = (run.error or {}).get("message", "It waits for a person.")
        return Step(f"{name} is paused.", why, f"Open {name}", href, here=here, asides=asides)
    if run.status is RunStatus.QUEUED:
        why = "It starts by itself."
        return Step(f"{name} waits for the worker.", why, f"Open {name}", href, here=here, asides=asides)
    left = f"{duration(run.seconds_left)} left. " if run.seconds_left is not None else ""
    why = f"{left}What it makes takes effect only when it is promoted, and judging goes on meanwhile."
    return Step(f"{name} is training.", why, f"Watch {name}", href, here=here, asides=asides)


def mend(state: State, run: Run) -> Step:
    """The newest run failed: say why, and lead to it; another training is one click away."""
    name = f"{KINDS[run.kind]} {run.number}"
    error = run.error or {}
    why = " ".join(part for part in (error.get("message"), error.get("mend")) if part)
    judge = (Aside("Judge", f"{state.base}/judge"),) if state.may_train else ()
    return Step(
        f"{name} stopped.",
        f"{why} Nothing else was touched.",
        f"Open {name}",
        f"{state.base}/runs/{run.id}",
        asides=(*judge, *train_again(state)),
    )


def train_again(state: State) -> tuple[Aside, ...]:
    """Training as the other thing to do, where it may be done and there are enough judgments for it."""
    enough = state.summary.train >= MIN_TRAIN and state.summary.heldout >= MIN_HELDOUT
    return (Aside("Train again", post=f"{state.base}/train"),) if state.may_train and enough else ()


def unpromoted(state: State) -> Checkpoint | None:
    """The newest policy, if it never was the current one: what was promoted and rolled back from was decided on."""
    if state.current is None or not state.policies:
        return None
    newest = state.policies[0]
    return None if newest.id in state.promoted else newest


def promote(state: State, candidate: Checkpoint) -> Step:
    """A policy newer than the current one waits."""
    shown = {"reward": "objective/scores", "KL": "objective/kl"}
    figures = []
    for word, trl_name in shown.items():
        value = candidate.metrics.get(word.lower(), candidate.metrics.get(trl_name))
        if value is not None:
            figures.append(f"{word} {figure(value)}")
    detail = f" It ended at {', '.join(figures)}." if figures else ""
    why = f"{detail} Promoted, it writes the next pairs; judged ones are kept, and rolling back is one click."
    action = f"Promote {candidate.name}"
    where = f"{state.base}/policies"
    return Step(
        f"{candidate.name} is trained.",
        why.strip(),
        action,
        post=f"{where}/{candidate.id}/promote",
        here="policy",
        asides=(Aside("Look at it first", where), *train_again(state)),
    )


def train_or_judge(state: State) -> Step:
    """Enough new judgments: train. Else: judge, and how many are missing."""
    have, base = state.summary.train, state.base
    used = state.learnt_from
    new = max(0, have - used)
    missing = max(0, MIN_TRAIN - have)
    if not state.may_train:
        return Step("The loop turns as people judge.", counted(state), "See the data", f"{base}/data")
    if have == 0:
        why = (
            "You see two answers to one prompt; choose the better by a key. The reward model learns from these choices."
        )
        if state.ready == 0:
            why = "The current policy is writing pairs; the page shows the first as soon as it is there."
        return Step("The loop starts with people.", why, "Judge the first pairs", f"{base}/judge")
    if missing:
        why = f"{have} judged so far. A reward model needs {MIN_TRAIN} to start; about {GOOD_START} make a good one."
        return Step(f"{missing} more judgments until a first training.", why, "Judge more pairs", f"{base}/judge")
    if state.summary.heldout < MIN_HELDOUT:
        share = f"About {100 * state.heldout_share:.3g} % do."
        why = f"None fell on a held-out prompt yet, so nothing could say how good a reward model is. {share}"
        return Step("Nearly ready to train.", why, "Judge more pairs", f"{base}/judge")
    if new >= WORTH_TRAINING:
        since = "new judgments since the last one" if used else "judgments"
        why = f"{new} {since}, {counted(state)}"
        return Step(
            "Ready to train a reward model.",
            why,
            "Train reward model, then PPO",
            post=f"{base}/train",
            here="reward",
            asides=(Aside("DPO instead", f"{base}/runs/start/dpo"),),
        )
    if used:
        why = f"{new} new since the last training; {WORTH_TRAINING} are worth a training. {counted(state)}"
        return Step(
            "Collect what the current policy gets wrong.",
            why,
            "Judge more pairs",
            f"{base}/judge",
            asides=(Aside("Train now", post=f"{base}/train"),),
        )
    why = f"Training pays from about {WORTH_TRAINING} judgments, and {GOOD_START} make a good reward model."
    return Step(
        "Keep judging.",
        why,
        "Judge more pairs",
        f"{base}/judge",
        asides=(Aside(f"Train with {have}", post=f"{base}/train"),),
    )


def counted(state: State) -> str:
    """Agreement beside what people usually reach, and the split."""
    summary = state.summary
    split = f"{summary.heldout} on held-out prompts, no prompt on both sides of the split."
    if not summary.agreement_pairs or summary.agreement is None:
        return split
    return f"agreement {percent(summary.agreement)} (people usually reach 73 to 77 %), {split}"


def is_reward_model(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint scores answers rather than writes them."""
    return checkpoint.kind is CheckpointKind.REWARD_MODEL
