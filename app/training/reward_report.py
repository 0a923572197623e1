"""What a reward model is worth: its unit, its calibration, and held-out accuracy beside all it must be read with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.core.configs import RewardConfig
from app.core.folders import write_file
from app.core.records import PreferenceRecord, ReliabilityBin, RewardReport, RewardSlice
from app.policy.reward_model import Calibration, RewardModel, save_reward_model
from app.training.failures import RunFailure
from app.training.reward_data import Comparisons, Side
from app.training.reward_figures import (
    Share,
    calibration_error,
    correlation,
    counted,
    fitted_temperature,
    half_credit,
    mean_nll,
    pair_accuracy,
    reliability,
    similarity,
)
from app.training.reward_losses import Pairs, preference_loss
from app.training.run import Run

Figures = dict[str, float | int | str | None]
NEAR = 0.1
"""Answers whose lengths differ by no more than this share of the longer one are of like length."""


class Scored(NamedTuple):
    """Raw scores [N] of the compared answers and of the demonstrations, and what was learnt beside them."""

    answers: Tensor
    anchors: Tensor
    tie_threshold: float | None
    calibration: Calibration | None


def log_step(
    run: Run[RewardConfig], step: int, phase: str, data: Comparisons, scores: Tensor, eta: float | None
) -> None:
    """Loss and accuracy on both sides of the split, from raw scores of all answers, [N].

    The train loss is what is minimised; the held-out one is the plain negative log-likelihood, whatever is minimised.
    """
    threshold = torch.tensor(eta) if eta else None
    figures = {}
    for prefix, side, smoothing in (("", data.train, run.config.label_smoothing), ("heldout_", data.heldout, 0.0)):
        right, count = pair_accuracy(margins(side, scores), side.pairs.tied)
        if count:
            figures[f"{prefix}loss"] = float(preference_loss(scores, side.pairs, threshold, smoothing))
            figures[f"{prefix}accuracy"] = right / count
    margin = margins(data.train, scores)[~data.train.pairs.tied]
    run.log(step, phase, margin=float(margin.mean()), **figures)


def calibrated(foreseen: Tensor | None, pairs: Pairs, how: str) -> Calibration | None:
    """A temperature for margins [P] that the scores were not fitted to; NaN where there is none. None for too few."""
    if foreseen is None:
        return None
    known = ~foreseen.isnan()
    margin, some = foreseen[known], pairs.where(known)
    temperature = fitted_temperature(margin, some.tied, some.weight)
    if temperature is None:
        return None
    strict = int((~some.tied).sum())
    return Calibration.model_validate({"temperature": temperature, "fitted_on": how, "pairs": strict})


def finish(
    run: Run[RewardConfig],
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Comparisons,
    scored: Scored,
    more: Figures,
) -> None:
    """Give the score its unit and end the run: an average demonstration scores 0, train answers spread by 1.

    Held-out answers decide neither: what is measured on them has not seen them.
    """
    if not bool(torch.cat([scored.answers, scored.anchors]).isfinite().all()):
        raise RunFailure("diverged", "The trained model gives scores that are not finite.", "Lower the learning rate.")
    taught = scored.answers[data.taught()]
    zero = float(scored.anchors.mean()) if len(scored.anchors) else float(taught.mean())
    spread = float(taught.std()) if len(taught) > 1 else 0.0
    scale = 1 / spread if spread > 1e-6 else 1.0
    figures, calibration = report(data, scored)
    unit = {"offset": zero, "scale": scale, "tie_threshold": scored.tie_threshold, "calibration": calibration}
    model.settings = model.settings.model_copy(update=unit)
    if run.world.main:
        write_file(run.dir.report, tables(data.heldout, scored, data).model_dump_json(indent=1) + "\n")
    run.finish(lambda folder: save_reward_model(folder, model, tokenizer), figures | more)


def report(data: Comparisons, scored: Scored) -> tuple[Figures, Calibration | None]:
    """The metrics of result.json, and the calibration with its errors. Ties count in no accuracy."""
    held, tied, margin = data.heldout, data.heldout.pairs.tied, margins(data.heldout, scored.answers)
    comparison, difference = held.comparison(), word_difference(held, data)
    overall = _where(margin, ~tied, comparison)
    longer, model_longer = (
        _where(sign, ~tied, comparison).value for sign in (difference, margin.sign() * difference.sign())
    )
    train_right, train_pairs = pair_accuracy(margins(data.train, scored.answers), data.train.pairs.tied)
    agreement, votes = held.human_agreement()
    words = torch.tensor([float(a.words) for a in data.answers])
    found = overall.comparisons > 0
    calibration = scored.calibration
    hot = calibration.temperature if calibration else 1.0
    ece, calibrated_ece = (calibration_error(margin, tied, t) if found else None for t in (1.0, hot))
    figures: Figures = {
        "heldout_accuracy": overall.value,
        "heldout_low": overall.low,
        "heldout_high": overall.high,
        "heldout_n": overall.comparisons,
        "heldout_nll": mean_nll(margin, tied),
        "longer_wins": longer,
        "train_accuracy": train_right / train_pairs,
        "pairs_train": train_pairs,
        "judgments_train": len(data.train.records),
        "ece": ece,
        "score_length_correlation": correlation(scored.answers.tolist(), words.tolist()),
        "margin_length_correlation": similarity(margin[~tied].double(), difference[~tied].double()) if found else None,
        "model_prefers_longer": model_longer,
        "human_agreement": agreement if votes else None,
    }
    for name, chosen in (("longer", difference > 0), ("shorter", difference < 0)):
        figures[f"heldout_accuracy_{name}_chosen"] = _where(margin, chosen & ~tied, comparison).value
    if calibration:
        calibration = calibration.model_copy(update={"ece": ece, "ece_calibrated": calibrated_ece})
        figures |= {
            "temperature": hot,
            "ece_calibrated": calibrated_ece,
            "heldout_nll_calibrated": mean_nll(margin, tied, hot),
        }
    return figures, calibration


def tables(side: Side, scored: Scored, data: Comparisons) -> RewardReport:
    """The tables of report.json: accuracy by slice and reliability, on one side's judgments."""
    margin, tied, comparison = margins(side, scored.answers), side.pairs.tied, side.comparison()
    slices = []
    for name, labels in _labels(side, data).items():
        for value in sorted(set(labels)):
            here = torch.tensor([label == value for label in labels], dtype=torch.bool)
            share = _where(margin, here & ~tied, comparison)
            if share.comparisons or name == "all":
                accuracy, low, high, comparisons, pairs = share
                slices.append(
                    RewardSlice(
                        slice=name,
                        value=value,
                        accuracy=accuracy,
                        low=low,
                        high=high,
                        comparisons=comparisons,
                        pairs=pairs,
                    )
                )
    hot = scored.calibration.temperature if scored.calibration else None
    plain, cooled = (
        [ReliabilityBin(**one._asdict()) for one in reliability(margin, tied, t)] if t else None for t in (1.0, hot)
    )
    return RewardReport(slices=slices, reliability=plain or [], reliability_calibrated=cooled)


def margins(side: Side, scores: Tensor) -> Tensor:
    """Raw score differences of a side's pairs, better minus worse, [P]."""
    return scores[side.pairs.first] - scores[side.pairs.second]


def word_difference(side: Side, data: Comparisons) -> Tensor:
    """How many words the better answer of each pair is longer, [P]."""
    words = torch.tensor([float(a.words) for a in data.answers])
    return words[side.pairs.first] - words[side.pairs.second]


def _where(margin: Tensor, mask: Tensor, comparison: Tensor) -> Share:
    return counted(half_credit(margin[mask]), comparison[mask])


def _labels(side: Side, data: Comparisons) -> dict[str, list[str]]:
    """For each slice, the value that each pair has of it."""
    judgments = side.pairs.judgment.tolist()
    votes = side.votes()

    def agreement(record: PreferenceRecord) -> str:
        said = votes[record.comparison_id]
        return "single" if len(said) == 1 else "unanimous" if len(set(said)) == 1 else "split"

    of_record: dict[str, Callable[[PreferenceRecord], str]] = {
        "all": lambda record: "all",
        "strength": lambda record: str(record.strength or "none"),
        "annotator": lambda record: record.annotator,
        "agreement": agreement,
    }
    labels = {name: [label(side.records[j]) for j in judgments] for name, label in of_record.items()}
    difference = word_difference(side, data).tolist()
    labels["chosen"] = ["longer" if d > 0 else "shorter" if d < 0 else "equal" for d in difference]
    longest = torch.tensor([float(a.words) for a in data.answers])
    top = torch.maximum(longest[side.pairs.first], longest[side.pairs.second]).tolist()
    near = [abs(d) <= NEAR * most for d, most in zip(difference, top, strict=True)]
    labels["length gap"] = ["within 10 %" if close else "over 10 %" for close in near]
    return labels
