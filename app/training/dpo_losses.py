"""The pure functions of DPO and IPO: log-ratios of answers in, losses of pairs out; no model and no state.

A log-ratio is log pi(y | x) - log pi_ref(y | x), the sum over an answer's tokens, in nats: one number a row of the
table of answers, [N]. Pairs point to rows, the better one first. beta times a log-ratio is the reward that the policy
implies (Rafailov et al. 2023, eq. 5, but for a term of the prompt alone, which cancels in every pair).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from app.training.reward_losses import Pairs


def dpo_loss(margin: Tensor, beta: float, flipped: Tensor) -> Tensor:
    """-(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m). [P], [P] -> [P], in nats.

    m is the log-ratio of the better answer minus that of the worse (Rafailov et al. 2023, eq. 7). e is the probability
    that the label is the wrong way round (conservative DPO, Mitchell 2023); a tie has e = 1/2.
    """
    return -(1 - flipped) * F.logsigmoid(beta * margin) - flipped * F.logsigmoid(-beta * margin)


def ipo_loss(margin: Tensor, beta: float, flipped: Tensor) -> Tensor:
    """(1 - e) (m - t)^2 + e (m + t)^2 with t = 1 / (2 beta). [P], [P] -> [P], in squared nats a token.

    m is the difference of log-ratios a token (Azar et al. 2023, eq. 17, whose tau is beta here): a finite margin is
    enough, where DPO's loss asks for ever more of one that no judgment contradicts.
    """
    target = 1 / (2 * beta)
    return (1 - flipped) * (margin - target) ** 2 + flipped * (margin + target) ** 2


def pair_losses(
    ratios: Tensor, lengths: Tensor, pairs: Pairs, loss: Literal["dpo", "ipo"], beta: float, smoothing: float
) -> Tensor:
    """The loss of each pair, [P]. `ratios` and `lengths` [N]: log-ratios and numbers of tokens of the answers.

    IPO takes each log-ratio by the token: with sums, a long pair would reach the target by a hair's breadth on every
    token, and a short one hardly at all.
    """
    flipped = torch.where(pairs.tied, 0.5, smoothing)
    if loss == "ipo":
        return ipo_loss(margins(ratios / lengths, pairs), beta, flipped)
    return dpo_loss(margins(ratios, pairs), beta, flipped)


def margins(values: Tensor, pairs: Pairs) -> Tensor:
    """Value of the better answer minus value of the worse. [N] -> [P]."""
    return values[pairs.first] - values[pairs.second]


def pair_figures(ratios: Tensor, logprobs: Tensor, pairs: Pairs, beta: float) -> dict[str, float]:
    """Weighted sums over the pairs with a better side, under TRL's names; `weight` is what they are to be divided by.

    They add up over the parts of a batch. An exact tie of rewards is half right.
    """
    weight = torch.where(pairs.tied, 0.0, pairs.weight)
    rewards = beta * ratios.detach()
    margin = margins(rewards, pairs)
    columns = {
        "rewards/chosen": rewards[pairs.first],
        "rewards/rejected": rewards[pairs.second],
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
        "logps/chosen": logprobs.detach()[pairs.first],
        "logps/rejected": logprobs.detach()[pairs.second],
    }
    return {name: float((column * weight).sum()) for name, column in columns.items()} | {"weight": float(weight.sum())}
