"""A head: the whole model is fine-tuned, one linear score on a pooled hidden state, minibatches of judgments."""

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from app.core.configs import RewardConfig
from app.policy.checkpoint import Policy
from app.policy.reward_model import HeadReward, RewardSettings, pack
from app.training.models import load_state, prepare, state_of
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import Shuffler
from app.training.reward_data import Answer, Comparisons
from app.training.reward_losses import Pairs, preference_loss
from app.training.reward_report import finish, log_step
from app.training.run import Run


def train(run: Run[RewardConfig], policy: Policy, data: Comparisons) -> None:
    """Each step is one update on `batch_size` judgments, every epoch in an order of its own."""
    config, seed = run.config, run.spec.seed
    model = new_head(run, policy).train()
    threshold = nn.Parameter(torch.tensor(-1.0))  # eta = softplus(threshold)
    learns_ties = config.ties == "rao-kupper" and bool(data.train.pairs.tied.any())
    prepare(model.body, config, seed)
    optimizer = MuonAdamW(
        [*model.body.named_parameters(), ("tie_threshold", threshold)],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    count = len(data.train.records)
    per_epoch = math.ceil(count / config.batch_size)
    total = config.epochs * per_epoch
    order = Shuffler(count, seed)
    run.progress(0, total, "training")

    state = run.restore()
    if state:
        (partial(load_state, model.body) if config.lora_rank else model.load_state_dict)(state.tree["model"])
        threshold.data.copy_(state.tree["threshold"])
        optimizer.load_state_dict(state.tree["optimizer"])
        order.load_state_dict(state.tree["order"])
    for step in range(state.step + 1 if state else 1, total + 1):
        # The last batch of an epoch is smaller: no judgment counts twice.
        left = count - (step - 1) % per_epoch * config.batch_size
        chosen = torch.tensor(order.take(min(config.batch_size, left)))
        pairs = _of(data.train.pairs, torch.isin(data.train.pairs.judgment, chosen))
        rows = torch.cat([pairs.first, pairs.second]).unique()
        scores = torch.zeros(len(data.answers))
        scores = scores.index_copy(0, rows, _scores(model, [data.answers[i] for i in rows], config.micro_batch_size))
        eta = nn.functional.softplus(threshold) if learns_ties else None
        loss = preference_loss(scores, pairs, eta)
        value = float(loss.detach())
        run.require_finite(step, loss=value)
        optimizer.zero_grad()
        loss.backward()
        norm = optimizer.step(config.gradient_clip, lr_factor(step - 1, total, int(config.warmup_share * total)))
        margin = (scores[pairs.first] - scores[pairs.second]).detach()[~pairs.tied]
        if step % config.log_every == 0 or step == total:
            right = float((margin > 0).float().mean()) if len(margin) else math.nan
            run.log(step, "train", loss=value, accuracy=right, margin=float(margin.mean()), grad_norm=norm)
        run.end_step(
            step,
            total,
            "training",
            lambda: {
                "model": state_of(model.body) if config.lora_rank else model.state_dict(),
                "threshold": threshold.detach(),
                "optimizer": optimizer.state_dict(),
                "order": order.state_dict(),
            },
        )

    model.eval()
    with torch.no_grad():
        answers = _scores(model, data.answers, config.micro_batch_size)
        anchors = _scores(model, data.anchors, config.micro_batch_size)
    eta_value = float(nn.functional.softplus(threshold)) if learns_ties else None
    log_step(run, total, "evaluate", data, answers, eta_value)
    finish(run, model, policy.tokenizer, data, answers, anchors, eta_value, {"kind": "head"})


def new_head(run: Run[RewardConfig], policy: Policy) -> HeadReward:
    """The policy's body, or a new one of its shape, with a new head: small numbers that the seed decides."""
    config = run.config
    settings = RewardSettings(kind="head", pooling="last" if config.pooling == "auto" else config.pooling)
    shape = copy.deepcopy(policy.model.config)
    shape.num_labels, shape.tie_word_embeddings = 1, False
    body = AutoModelForSequenceClassification.from_config(shape)
    if config.initialise == "policy":
        body.base_model.load_state_dict(policy.model.base_model.state_dict())
    body.config.pad_token_id = policy.tokenizer.pad_token_id
    model = HeadReward(settings, body)
    generator = torch.Generator().manual_seed(run.spec.seed)
    # Stiennon et al. (2020): normal with variance 1 / (d + 1).
    width = model.head.weight.shape[1]
    model.head.weight.data.normal_(0, 1 / math.sqrt(width + 1), generator=generator)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def _scores(model: HeadReward, answers: Sequence[Answer], micro_batch: int) -> Tensor:
    """Raw scores of answers, in order; like lengths share a forward pass."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].prompt) + len(answers[i].completion))
    parts = []
    for start in range(0, len(order), micro_batch):
        part = [answers[i] for i in order[start : start + micro_batch]]
        parts.append(model(*pack([a.prompt for a in part], [a.completion for a in part], model.pad_id)))
    if not parts:
        return torch.zeros(0)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def _of(pairs: Pairs, mask: Tensor) -> Pairs:
    return Pairs(*(field[mask] for field in pairs))
