"""A head: the whole model is fine-tuned, linear scores on a pooled hidden state, minibatches of judgments."""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from app.core.configs import RewardConfig
from app.policy.checkpoint import Policy
from app.policy.reward_model import Calibration, HeadReward, RewardSettings, pack
from app.training.failures import RunFailure
from app.training.models import load_state, prepare, state_of
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import Shuffler, derived_seed
from app.training.processes import ALONE, World
from app.training.reward_checks import check_scores
from app.training.reward_data import Answer, Comparisons, Side
from app.training.reward_fit import drawn
from app.training.reward_losses import preference_loss
from app.training.reward_report import Scored, calibrated, finish, log_step
from app.training.run import Run


def train(run: Run[RewardConfig], policy: Policy, data: Comparisons) -> None:
    """Each step is one update on `batch_size` judgments, every epoch in an order of its own."""
    config, seed = run.config, run.spec.seed
    model = new_head(run, policy).train()
    threshold = nn.Parameter(torch.tensor(-1.0))  # eta = softplus(threshold)
    learns_ties = config.ties == "rao-kupper" and bool(data.train.pairs.tied.any())
    prepare(model.body, config, seed)
    model.to(run.device)  # scores, and all that is made of them, are on the CPU
    optimizer = MuonAdamW(
        [*model.body.named_parameters(), ("tie_threshold", threshold)],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    units = torch.tensor(learnt_units(data.train, config, seed))
    draws = drawn(data.train.units, config.members, seed).float()
    per_epoch = math.ceil(len(units) / config.batch_size)
    total = config.epochs * per_epoch
    order = Shuffler(len(units), seed)
    foreseeable = late_and_new(data.train, units.tolist(), config, seed)
    foreseen = torch.full([len(data.train.pairs.first)], math.nan)
    run.progress(0, total, "training")

    state = run.restore()
    if state:
        (partial(load_state, model.body) if config.lora_rank else model.load_state_dict)(state.tree["model"])
        threshold.data.copy_(state.tree["threshold"])
        optimizer.load_state_dict(state.tree["optimizer"])
        order.load_state_dict(state.tree["order"])
        foreseen.copy_(state.tree["foreseen"])
    for step in range(state.step + 1 if state else 1, total + 1):
        # The last batch of an epoch is smaller: no judgment counts twice.
        left = len(units) - (step - 1) % per_epoch * config.batch_size
        chosen = units[order.take(min(config.batch_size, left))]
        batch = torch.isin(data.train.pairs.unit, chosen).nonzero()[:, 0]
        optimizer.zero_grad()
        value, margin = backward(model, data, batch, draws, threshold if learns_ties else None, config, run.world)
        if step == 1:
            check_scores(margin, "first differences of scores")
        run.require_finite(step, loss=value)
        run.world.sum_gradients(optimizer.parameters)
        foreseen[batch] = torch.where(foreseeable[batch], margin, foreseen[batch])
        norm = optimizer.step(config.gradient_clip, lr_factor(step - 1, total, int(config.warmup_share * total)))
        if step % config.log_every == 0 or step == total:
            strict = margin[~data.train.pairs.tied[batch]]
            right = float((strict > 0).float().mean()) if len(strict) else math.nan
            run.log(step, "train", loss=value, accuracy=right, margin=float(strict.mean()), grad_norm=norm)
        run.end_step(
            step,
            total,
            "training",
            lambda: {
                "model": state_of(model.body) if config.lora_rank else model.state_dict(),
                "threshold": threshold.detach(),
                "optimizer": optimizer.state_dict(),
                "order": order.state_dict(),
                "foreseen": foreseen,
            },
        )

    model.eval()
    answers, anchors = (read_all(run, model, some).mean(0) for some in (data.answers, data.anchors))
    eta_value = float(nn.functional.softplus(threshold.detach())) if learns_ties else None
    log_step(run, total, "evaluate", data, answers, eta_value)
    calibration = calibration_of(data.train, answers, foreseen, units, config)
    finish(run, model, policy.tokenizer, data, Scored(answers, anchors, eta_value, calibration), {"kind": "head"})


def new_head(run: Run[RewardConfig], policy: Policy) -> HeadReward:
    """The policy's body, or a new one of its shape, with new heads: small numbers that the seed decides."""
    config = run.config
    settings = RewardSettings(
        kind="head", pooling="last" if config.pooling == "auto" else config.pooling, members=config.members
    )
    shape = copy.deepcopy(policy.model.config)
    shape.num_labels, shape.tie_word_embeddings = 1, False
    try:
        body = AutoModelForSequenceClassification.from_config(shape)
    except ValueError as error:
        mend = "Use a decoder such as Llama, Qwen or GPT-2, or kind=probe."
        raise RunFailure("config", f"{shape.model_type} has no sequence classifier in transformers.", mend) from error
    if config.initialise == "policy":
        body.base_model.load_state_dict(policy.model.base_model.state_dict())
    body.config.pad_token_id = policy.tokenizer.pad_token_id
    model = HeadReward(settings, body)
    # Stiennon et al. (2020): normal with variance 1 / (d + 1). Each member has a stream of its own.
    width = model.head.weight.shape[1]
    for number, row in enumerate(model.head.weight.data):
        own = derived_seed(run.spec.seed, "member", number) if number else run.spec.seed
        row.normal_(0, 1 / math.sqrt(width + 1), generator=torch.Generator().manual_seed(own))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def backward(
    model: HeadReward,
    data: Comparisons,
    batch: Tensor,
    draws: Tensor,
    threshold: nn.Parameter | None,
    config: RewardConfig,
    world: World = ALONE,
) -> tuple[float, Tensor]:
    """Add up this process's part of the gradient of the loss of train pairs `batch` [B], micro-batch by micro-batch;
    the loss of the whole batch, and the margin [B] of each pair.

    `draws` [M, units] says how often each member drew each unit. A threshold for ties is softplus(threshold).
    """
    loss, margin = 0.0, torch.zeros(len(batch))
    weight = data.train.pairs.weight[batch].sum()
    mine = world.mine(data.train.pairs.judgment[batch]).nonzero()[:, 0]
    for part in (mine[places] for places in micro_batches(data, batch[mine], config.micro_batch_size)):
        pairs = data.train.pairs.where(batch[part])
        rows, place = torch.cat([pairs.first, pairs.second]).unique(return_inverse=True)
        scores = read(model, [data.answers[i] for i in rows], config.micro_batch_size)
        here = pairs._replace(first=place[: len(part)], second=place[len(part) :])
        eta = nn.functional.softplus(threshold) if threshold is not None else None
        share = draws[:, pairs.unit] * pairs.weight
        mean = preference_loss(scores, here, eta, config.label_smoothing, share)
        own = mean * (pairs.weight.sum() / weight)  # of this part, in the mean over the whole batch
        own.backward()
        loss += float(own.detach())
        margin[part] = (scores[:, here.first] - scores[:, here.second]).detach().mean(0)
    return world.sum({"loss": loss})["loss"], world.total(margin)


def micro_batches(data: Comparisons, batch: Tensor, most: int) -> Iterator[Tensor]:
    """Cut a batch of train pairs (their numbers, [B]) into parts of at most `most` rows, as places in the batch.

    A judgment is never cut: its answers are read together, and each once, whatever the number of its pairs. Judgments
    of like length stand together, so that little is padding. Gradients of the parts add up to that of the whole.
    """
    pairs = data.train.pairs.where(batch)
    judged: dict[int, tuple[set[int], list[int]]] = {}
    for place, (judgment, *two) in enumerate(torch.stack([pairs.judgment, pairs.first, pairs.second], 1).tolist()):
        answers, places = judged.setdefault(judgment, (set(), []))
        answers.update(two)
        places.append(place)
    rows = set().union(*(answers for answers, _ in judged.values()))
    if not rows:
        return
    if len(rows) <= most:
        yield torch.arange(len(batch))
        return
    length = {row: len(data.answers[row].prompt) + len(data.answers[row].completion) for row in rows}
    inside: set[int] = set()
    part: list[int] = []
    for answers, places in sorted(judged.values(), key=lambda one: max(length[row] for row in one[0])):
        if part and len(inside | answers) > most:
            yield torch.tensor(part)
            inside, part = set(), []
        inside |= answers
        part += places
    yield torch.tensor(part)


def read(model: HeadReward, answers: Sequence[Answer], micro_batch: int) -> Tensor:
    """Raw scores of answers by each member, [M, N] on the CPU, in order; like lengths share a forward pass."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].prompt) + len(answers[i].completion))
    parts = []
    for start in range(0, len(order), micro_batch):
        part = [answers[i] for i in order[start : start + micro_batch]]
        packed = pack([a.prompt for a in part], [a.completion for a in part], model.pad_id)
        parts.append(model.members(*(tensor.to(model.body.device) for tensor in packed)).cpu())
    if not parts:
        return torch.zeros(model.settings.members, 0)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts, 1)[:, back]


@torch.no_grad()
def read_all(run: Run[RewardConfig], model: HeadReward, answers: Sequence[Answer]) -> Tensor:
    """The same without a gradient, each process reading its share."""
    most = run.config.micro_batch_size
    rows = run.world.spread(answers, lambda some: read(model, some, most).T.tolist())
    return torch.tensor(rows).reshape(len(answers), model.settings.members).T.contiguous()


# ---- what a temperature is fitted on: train judgments that the scores had not seen ----------------------------------


def learnt_units(side: Side, config: RewardConfig, seed: int) -> list[int]:
    """The units to learn from: all, or those whose prompt calibration does not keep back."""
    if not config.calibration_share:
        return list(range(side.units))
    spared = {
        p for p in set(side.prompts()) if derived_seed(seed, "calibrate", p) < config.calibration_share * (1 << 63)
    }
    units = [unit for unit, prompt in enumerate(side.prompts()) if prompt not in spared]
    kept = torch.isin(side.pairs.unit, torch.tensor(units, dtype=torch.long))
    if not bool((kept & ~side.pairs.tied).any()):
        message = f"calibration_share={config.calibration_share:g} leaves no preference to learn from."
        raise RunFailure("config", message, "Lower calibration_share, or judge more pairs.")
    return units


def late_and_new(side: Side, units: Sequence[int], config: RewardConfig, seed: int) -> Tensor:
    """Which pairs the last third of a single pass is the first to see the prompt of, [P]: scored just before they are
    learnt from, by a model that is nearly the final one."""
    mask = torch.zeros(len(side.pairs.first), dtype=torch.bool)
    if config.epochs > 1 or config.calibration_share:
        return mask
    order, prompts = Shuffler(len(units), seed).take(len(units)), side.prompts()
    first: dict[str, int] = {}
    batches = [place // config.batch_size for place in range(len(units))]
    for place, number in enumerate(order):
        first.setdefault(prompts[units[number]], batches[place])
    late = 2 * (batches[-1] + 1) / 3
    new = [
        units[number]
        for place, number in enumerate(order)
        if batches[place] >= late and first[prompts[units[number]]] == batches[place]
    ]
    return torch.isin(side.pairs.unit, torch.tensor(new, dtype=torch.long))


def calibration_of(
    side: Side, answers: Tensor, foreseen: Tensor, units: Tensor, config: RewardConfig
) -> Calibration | None:
    """From the final scores of judgments that were kept back, else from what a single pass foresaw."""
    if not config.calibration_share:
        return calibrated(foreseen, side.pairs, "single pass")
    margin = answers[side.pairs.first] - answers[side.pairs.second]
    return calibrated(margin.masked_fill(torch.isin(side.pairs.unit, units), math.nan), side.pairs, "kept back")
