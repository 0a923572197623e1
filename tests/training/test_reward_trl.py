"""The losses of reward models against TRL's RewardTrainer on the same model and batch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from app.core.configs import RewardConfig
from app.core.records import PreferenceRecord
from app.policy.reward_model import HeadReward
from app.policy.starter import new_starter
from app.training.reward_data import Comparisons, read_comparisons
from app.training.reward_head import backward, new_head, read
from app.training.reward_losses import preference_loss
from tests.training.judgments import preference

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and its dependencies' own


def trainer(model: LlamaForSequenceClassification, rows: list[dict[str, Any]], folder: Path) -> Any:
    """TRL's trainer on rows that are tokenized already."""
    from datasets import Dataset
    from trl import RewardConfig as TheirConfig
    from trl import RewardTrainer

    arguments = TheirConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none"
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=new_starter("tiny").tokenizer,
    )


def theirs(data: Comparisons, model: HeadReward, folder: Path, margins: bool) -> torch.Tensor:
    """Their loss of all train pairs in one batch; its gradient is then in the model."""
    pairs = data.train.pairs
    ids = [[*a.prompt, *a.completion] for a in data.answers]
    rows = [
        {"chosen_ids": ids[i], "rejected_ids": ids[j], **({"margin": m} if margins else {})}
        for i, j, m in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.asked.tolist(), strict=True)
    ]
    other = trainer(model.body, rows, folder)
    batch = other.data_collator([other.train_dataset[i] for i in range(len(rows))])
    loss: torch.Tensor = other.compute_loss(other.model, batch)
    model.zero_grad()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_bradley_terry_with_and_without_margins_is_trls(tmp_path: Path, margin: float) -> None:
    records = [
        PreferenceRecord.model_validate(preference(i, [[i % 2], [1 - i % 2]], strength=1 + i % 4)) for i in range(8)
    ]
    config = RewardConfig(kind="head", strength_margin=margin, micro_batch_size=5)
    starter = new_starter("tiny")
    data = read_comparisons(records, [], starter.tokenizer, config, seed=0)
    run: Any = SimpleNamespace(config=config, spec=SimpleNamespace(seed=0))
    model = new_head(run, starter)
    model.head.weight.data *= 10  # so that differences are of the size of margins

    expected = theirs(data, model, tmp_path, margins=margin > 0)
    gradients = {name: p.grad.clone() for name, p in model.body.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours, _ = backward(model, data, torch.arange(8), torch.ones(1, 8), None, config)
    assert ours == pytest.approx(expected.item(), abs=1e-5)
    assert {"score.weight", "model.layers.0.self_attn.q_proj.weight"} <= gradients.keys()
    for name, parameter in model.body.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, gradients[name], atol=2e-5, rtol=1e-4), name


def test_a_ranking_as_pairs_is_trls_mean_over_its_pairs(tmp_path: Path) -> None:
    answers = ["Hello, your kettle is on its way.", "No.", "It left today, Ann. Kind regards, Mia."]
    record = PreferenceRecord.model_validate(preference(0, [[2], [0], [1]], completions=answers))
    config, starter = RewardConfig(kind="head"), new_starter("tiny")
    data = read_comparisons([record], [], starter.tokenizer, config, seed=0)
    run: Any = SimpleNamespace(config=config, spec=SimpleNamespace(seed=1))
    model = new_head(run, starter)
    expected = theirs(data, model, tmp_path, margins=False)
    with torch.no_grad():
        ours = preference_loss(read(model, data.answers, 5), data.train.pairs)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
