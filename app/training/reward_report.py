"""What a reward model is worth, in figures: held-out accuracy with its interval, and what it must be read beside."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.core.agreement import wilson
from app.core.configs import RewardConfig
from app.policy.reward_model import RewardModel, save_reward_model
from app.training.reward_data import Comparisons, Side
from app.training.reward_losses import calibration_error, correlation, pair_accuracy, preference_loss
from app.training.run import Run

Figures = dict[str, float | int | str | None]


def log_step(
    run: Run[RewardConfig], step: int, phase: str, data: Comparisons, scores: Tensor, eta: float | None
) -> None:
    """Loss and accuracy on both sides of the split, from raw scores of all answers, [N]."""
    threshold = torch.tensor(eta) if eta else None
    figures = {}
    for prefix, side in (("", data.train), ("heldout_", data.heldout)):
        right, count = accuracy(side, scores)
        if count:
            figures[f"{prefix}loss"] = float(preference_loss(scores, side.pairs, threshold))
            figures[f"{prefix}accuracy"] = right / count
    margin = margins(data.train, scores)[~data.train.pairs.tied]
    run.log(step, phase, margin=float(margin.mean()), **figures)


def finish(
    run: Run[RewardConfig],
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Comparisons,
    answers: Tensor,
    anchors: Tensor,
    tie_threshold: float | None,
    more: Figures,
) -> None:
    """Give the score its unit and end the run: an average demonstration scores 0, the compared answers spread by 1.

    `answers` and `anchors` are raw scores, [N] each, of the compared answers and of the demonstrations.
    """
    zero = float(anchors.mean()) if len(anchors) else float(answers.mean())
    spread = float(answers.std()) if len(answers) > 1 else 0.0
    scale = 1 / spread if spread > 1e-6 else 1.0
    unit = {"offset": zero, "scale": scale, "tie_threshold": tie_threshold}
    model.settings = model.settings.model_copy(update=unit)
    run.finish(lambda folder: save_reward_model(folder, model, tokenizer), report(data, answers) | more)


def report(data: Comparisons, scores: Tensor) -> Figures:
    """The metrics of result.json. `scores` [N] are raw, one a row of `data.answers`; ties count in no accuracy."""
    right, pairs = accuracy(data.heldout, scores)
    low, high = wilson(right, pairs)
    train_right, train_pairs = accuracy(data.train, scores)
    agreement, votes = data.heldout.human_agreement()
    words = torch.tensor([float(a.words) for a in data.answers])
    held, margin = data.heldout.pairs, margins(data.heldout, scores)
    figures: Figures = {
        "heldout_accuracy": right / pairs if pairs else None,
        "heldout_low": low,
        "heldout_high": high,
        "heldout_n": pairs,
        "longer_wins": data.heldout.longer_wins() if pairs else None,
        "train_accuracy": train_right / train_pairs,
        "ece": calibration_error(margin, held.tied) if pairs else None,
        "pairs_train": train_pairs,
        "score_length_correlation": correlation(scores.tolist(), words.tolist()),
        "human_agreement": agreement if votes else None,
    }
    difference = words[held.first] - words[held.second]
    for name, chosen in (("longer", difference > 0), ("shorter", difference < 0)):
        some, count = pair_accuracy(margin[chosen], held.tied[chosen])
        figures[f"heldout_accuracy_{name}_chosen"] = some / count if count else None
    return figures


def accuracy(side: Side, scores: Tensor) -> tuple[float, int]:
    """Pairs ordered rightly (equal scores one half), and pairs with a better side."""
    return pair_accuracy(margins(side, scores), side.pairs.tied)


def margins(side: Side, scores: Tensor) -> Tensor:
    """Raw score differences of a side's pairs, better minus worse, [P]."""
    return scores[side.pairs.first] - scores[side.pairs.second]
