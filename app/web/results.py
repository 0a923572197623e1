"""What a run's or a model's metrics mean, in figures with their interval and floor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.vocabulary import RunKind
from app.web.words import figure, number, percent

PEOPLE = "people agree with each other 73 to 77 % of the time"
CUT_OFTEN = 0.2


@dataclass(frozen=True)
class Figure:
    """One result: its name, its value, what it means, and a tone where it needs attention."""

    name: str
    value: str
    meaning: str
    tone: str = ""


def results(kind: RunKind, metrics: Mapping[str, Any]) -> list[Figure]:
    """The figures worth reading first, for this kind of run."""
    if kind is RunKind.REWARD:
        return reward(metrics)
    if kind is RunKind.PPO:
        return ppo(metrics)
    if kind is RunKind.DPO:
        return dpo(metrics)
    return sft(metrics)


def brief(kind: RunKind, metrics: Mapping[str, Any]) -> str:
    """The one figure for a table."""
    if kind is RunKind.REWARD:
        accuracy = metrics.get("heldout_accuracy")
        return percent(accuracy) if accuracy is not None else ""
    name, value = (
        ("KL", pick(metrics, "kl", "objective/kl"))
        if kind in (RunKind.PPO, RunKind.DPO)
        else ("perplexity", pick(metrics, "perplexity"))
    )
    return f"{name} {figure(value)}" if value is not None else ""


def reward(metrics: Mapping[str, Any]) -> list[Figure]:
    """Held-out accuracy beside its interval and its floor, then how sure and how overfitted it is."""
    figures = judged(metrics)
    if metrics.get("ece") is not None:
        figures.append(
            Figure(
                "Calibration error",
                percent(metrics["ece"]),
                "how far its confidence is off, on average; below 10 % is good",
            )
        )
    if metrics.get("human_agreement") is not None:
        meaning = "how often people agreed with each other on the held-out pairs: more cannot be expected of it"
        figures.append(Figure("People's agreement", percent(metrics["human_agreement"]), meaning))
    if metrics.get("score_length_correlation") is not None:
        meaning = "correlation of score and length; near 1 it pays for length"
        figures.append(Figure("Score and length", figure(metrics["score_length_correlation"]), meaning))
    if metrics.get("pairs_train") is not None:
        figures.append(Figure("Learnt from", number(metrics["pairs_train"]), "judged pairs on training prompts"))
    return figures


def dpo(metrics: Mapping[str, Any]) -> list[Figure]:
    """Whether the policy's own probabilities moved toward what people preferred, and how far it went for that."""
    figures = judged(metrics)
    known = (
        ("KL", ("kl",), "nats per answer away from the reference; the less for the same accuracy, the better"),
        ("Length", ("length",), "tokens per answer; a big change deserves a look at the samples"),
    )
    found = [(name, pick(metrics, *keys), meaning) for name, keys, meaning in known]
    figures += [Figure(name, figure(value), meaning) for name, value, meaning in found if value is not None]
    cut = metrics.get("truncated_share")
    if cut is not None and cut > CUT_OFTEN:
        figures.append(Figure("Cut-off answers", percent(cut), "it has forgotten how to stop", "warning"))
    if metrics.get("pairs_train") is not None:
        figures.append(Figure("Learnt from", number(metrics["pairs_train"]), "judged pairs on training prompts"))
    return figures


def judged(metrics: Mapping[str, Any]) -> list[Figure]:
    """How well a model orders judged pairs: held-out ones with interval and floor, and those that it learnt from."""
    accuracy, floor = metrics.get("heldout_accuracy"), metrics.get("longer_wins")
    figures = []
    if accuracy is not None:
        meaning = f"interval {interval(metrics)} on {number(metrics.get('heldout_n') or 0)} held-out pairs; {PEOPLE}"
        low = metrics.get("heldout_low")
        weak = floor is not None and low is not None and low <= floor
        if weak:
            meaning += "; its interval reaches down to the floor, so judge more before trusting it"
        figures.append(Figure("Held-out accuracy", percent(accuracy), meaning, "warning" if weak else "good"))
    if floor is not None:
        figures.append(
            Figure("Floor", percent(floor), "what 'the longer answer wins' alone would reach on the same pairs")
        )
    train = metrics.get("train_accuracy")
    if train is not None:
        gap = accuracy is not None and train - accuracy > 0.1
        meaning = (
            "more than 10 points above held-out: it has learnt these pairs by heart"
            if gap
            else "close to held-out is good"
        )
        figures.append(Figure("Accuracy on its own pairs", percent(train), meaning, "warning" if gap else ""))
    return figures


def ppo(metrics: Mapping[str, Any]) -> list[Figure]:
    """What PPO gained, and what it paid for it."""
    known = (
        ("Reward", ("reward", "objective/scores"), "mean score by the reward model; demonstrations score 0"),
        (
            "KL",
            ("kl", "objective/kl"),
            "nats per answer away from the reference; the less for the same reward, the better",
        ),
        ("Entropy", ("entropy", "objective/entropy"), "how varied the policy still is; near 0 it repeats itself"),
        (
            "Length",
            ("length", "completions/mean_length"),
            "tokens per answer; a big change deserves a look at the samples",
        ),
    )
    figures = []
    for name, keys, meaning in known:
        value, before = pick(metrics, *keys), metrics.get(f"{keys[0]}_before")
        if value is not None:
            figures.append(
                Figure(name, figure(value), f"from {figure(before)}; {meaning}" if before is not None else meaning)
            )
    if metrics.get("stopped_by") == "kl_budget":
        figures.append(Figure("Stopped by", "KL budget", "the last policy within the budget was kept", "warning"))
    return figures


def sft(metrics: Mapping[str, Any]) -> list[Figure]:
    """How well the policy predicts demonstrations it has not seen."""
    known = (
        (
            "Held-out perplexity",
            ("perplexity",),
            "the number of tokens it hesitates between; lower is better, 1 is certainty",
        ),
        ("Held-out loss", ("heldout_nll",), "nats per token on demonstrations that it has not seen"),
        ("Speed", ("tokens_per_s",), "tokens a second"),
    )
    found = [(name, pick(metrics, *keys), meaning) for name, keys, meaning in known]
    return [Figure(name, figure(value), meaning) for name, value, meaning in found if value is not None]


def interval(metrics: Mapping[str, Any]) -> str:
    """The Wilson interval of the held-out accuracy."""
    return f"{percent(metrics.get('heldout_low'))} to {percent(metrics.get('heldout_high'))}"


def pick(metrics: Mapping[str, Any], *names: str) -> Any:
    """The first of these that is there."""
    return next((metrics[name] for name in names if metrics.get(name) is not None), None)
