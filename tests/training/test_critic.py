import pytest
import torch
from torch import nn

from app.training.critic import Judge, score_with_penalty
from app.training.rollout import MicroBatch


class Members(nn.Module):
    """A reward model whose members say (1, 3, 2) and (3, 5, 12) of three rows."""

    offset, scale = 0.5, 2.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 3.0, 2.0], [3.0, 5.0, 12.0]]))

    def members(self, ids: torch.Tensor, attention: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        return self.weight[:, : len(ids)]


def three_rows() -> MicroBatch:
    ids = torch.zeros(3, 2, dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.long)
    return MicroBatch(ids, torch.ones_like(ids), ids.bool(), torch.arange(3), *[empty] * 5)


def test_an_ensemble_scores_its_mean_less_its_disagreement() -> None:
    # Means 2, 4, 7, standard deviations 1, 1, 5.
    judge = Judge(Members(), clip=100.0)  # type: ignore[arg-type]
    assert judge.members == 2
    assert judge(three_rows()).scores.tolist() == [3.0, 7.0, 13.0]
    assert judge(three_rows()).spread.tolist() == [2.0, 2.0, 10.0]
    careful = Judge(Members(), clip=100.0, penalty=0.8)  # type: ignore[arg-type]
    # (2 - 0.8 - 0.5) x 2, (4 - 0.8 - 0.5) x 2, (7 - 4 - 0.5) x 2
    assert careful(three_rows()).scores.tolist() == pytest.approx([1.4, 5.4, 5.0])
    assert careful(three_rows()).spread.tolist() == [2.0, 2.0, 10.0]
    assert Judge(Members(), 5.0, 0.8)(three_rows()).scores.tolist() == pytest.approx([1.4, 5.0, 5.0])  # type: ignore[arg-type]


def test_only_an_answer_without_its_end_pays() -> None:
    ended = torch.tensor([True, False])
    assert score_with_penalty(torch.tensor([1.0, 1.0]), ended, 0.75).tolist() == [1.0, 0.25]
