"""Direct preference optimisation (Rafailov et al. 2023), or IPO (Azar et al. 2023): one update a batch of judgments.

Where a policy maximises E[r(x, y)] - beta KL(policy || reference), r(x, y) is beta log(pi(y | x) / pi_ref(y | x)) but
for a term of x alone. So Bradley and Terry's model of the judgments, to which a reward model would be fitted, can be
fitted by the policy itself: no reward model, no sampling. The reference's log-probabilities never change and are
computed once, up front.

The loss of an update is the mean over its judgments (each weighs 1, its pairs share that) of the pairs' losses, plus
`sft_weight` times the mean negative log-likelihood of the better answers' tokens.
"""

import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.core.configs import DPOConfig
from app.policy.checkpoint import Policy, load_policy, save_policy
from app.policy.likelihood import CPU_ROWS
from app.training.dpo_data import Judgments, parts, read_judgments, row_logprobs
from app.training.dpo_losses import pair_figures, pair_losses
from app.training.dpo_report import Report
from app.training.failures import Cancelled, RunFailure
from app.training.memory import SMALLER, WEIGHT, of_learner, require_memory_for, stored_parameters
from app.training.models import freeze, learning, load_state, place, prepare, state_of
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import Shuffler
from app.training.processes import ALONE, World
from app.training.reward_losses import Pairs
from app.training.run import Run

BETA = {"dpo": 0.1, "ipo": 1.0}
"""Where the configuration leaves beta open."""
READ_ROWS = 512
"""Answers that the reference reads between two looks at whether the run should stop."""


class Learner(NamedTuple):
    """What an update needs: the policy, the judgments, and of each answer its length and log pi_ref, [N] both."""

    model: PreTrainedModel
    pad_id: int
    data: Judgments
    lengths: Tensor
    reference: Tensor
    beta: float


def train(run: Run[DPOConfig]) -> None:
    """Train the run's policy on its judgments and leave it in final/."""
    config = run.config
    policy, reference_folder = open_policies(run)
    model, tokenizer = policy
    context = getattr(model.config, "max_position_embeddings", None)
    data = read_judgments(run.preferences(), tokenizer, config, context)
    optimizer = MuonAdamW(
        learning(model),
        lr=config.learning_rate,
        muon_lr=config.learning_rate if config.optimizer == "muon" else None,
        weight_decay=config.weight_decay,
    )
    order = Shuffler(data.train.count, run.spec.seed)
    per_epoch = math.ceil(data.train.count / config.batch_size)
    total = config.epochs * per_epoch

    state = run.restore()
    if state:
        load_state(model, state.tree["model"])
        optimizer.load_state_dict(state.tree["optimizer"])
        order.load_state_dict(state.tree["order"])
        reference = state.tree["reference"]
    else:
        reference = reference_logprobs(run, policy, data, total)
    beta = BETA[config.loss] if config.beta is None else config.beta
    learner = Learner(model, int(tokenizer.pad_token_id), data, data.lengths, reference, beta)
    report = Report(run, policy, reference_folder, data, reference, beta)

    def whole() -> dict[str, Any]:
        states = {"model": state_of(model), "optimizer": optimizer.state_dict(), "order": order.state_dict()}
        return states | {"reference": reference}

    if not state:
        report.samples(0)
        run.save_checkpoint(0, whole())
    tokens, started = 0.0, time.monotonic()
    for step in range(state.step + 1 if state else 1, total + 1):
        # The last batch of an epoch is smaller: no judgment counts twice.
        left = data.train.count - (step - 1) % per_epoch * config.batch_size
        pairs = data.train.of(order.take(min(config.batch_size, left)))
        optimizer.zero_grad()
        figures = gradient(learner, pairs, config, run.world)
        run.require_finite(step, loss=figures["loss"])
        run.world.sum_gradients(optimizer.parameters)
        factor = lr_factor(step - 1, total, round(config.warmup_share * total), config.schedule, config.schedule_floor)
        norm = optimizer.step(config.gradient_clip, factor)
        tokens += figures.pop("tokens")
        if step % config.log_every == 0 or step == total:
            speed = tokens / (time.monotonic() - started)
            rate = factor * config.learning_rate
            run.log(step, "train", **figures, grad_norm=norm, learning_rate=rate, tokens_per_s=speed)
        if step < total and step % config.eval_every == 0:
            run.progress(step, total, "evaluating")
            report.look(step)
        if step < total and step % config.sample_every == 0:
            report.samples(step)
        run.end_step(step, total, "training", whole)

    run.progress(total, total, "evaluating")
    report.samples(total)
    result = report.result(total)
    run.finish(lambda folder: save_policy(folder, *policy), result)


def gradient(learner: Learner, pairs: Pairs, config: DPOConfig, world: World = ALONE) -> dict[str, float]:
    """Leave this process's part of the gradient of the loss of a batch in the policy; the whole batch's figures, the
    same whatever the micro-batch."""
    weight = float(pairs.weight.sum())
    better = torch.where(pairs.tied, 0.0, pairs.weight)
    better_tokens = float((better * learner.lengths[pairs.first]).sum())
    figures: dict[str, float] = defaultdict(float)
    # A CPU reads CPU_ROWS rows in a pass, so more in memory at once would not be faster.
    most = (
        min(config.micro_batch_size, CPU_ROWS // 2) if learner.model.device.type == "cpu" else config.micro_batch_size
    )
    for part in parts(learner.data, pairs.where(world.mine(pairs.judgment)), most):
        rows = [learner.data.rows[i] for i in part.rows]
        logprobs = row_logprobs(learner.model, rows, learner.pad_id, 2 * config.micro_batch_size)
        ratios, lengths = logprobs - learner.reference[part.rows], learner.lengths[part.rows]
        losses = pair_losses(ratios, lengths, part.pairs, config.loss, learner.beta, config.label_smoothing)
        preference = (losses * part.pairs.weight).sum() / weight
        share = torch.where(part.pairs.tied, 0.0, part.pairs.weight)
        # 0 / 1 where a batch holds nothing but ties.
        likelihood = -(share * logprobs[part.pairs.first]).sum() / (better_tokens or 1.0)
        loss = preference + config.sft_weight * likelihood
        loss.backward()
        sums = pair_figures(ratios, logprobs, part.pairs, learner.beta)
        sums |= {"loss": float(loss.detach()), "nll": float(likelihood.detach()), "tokens": sum(map(len, rows))}
        for name, value in sums.items():
            figures[name] += value
    return means(world.sum(figures))


def means(figures: dict[str, float]) -> dict[str, float]:
    """Sums over pairs with a better side divided by their weight; NaN, logged as null, where there is no such pair."""
    weight = figures.pop("weight")
    return {
        name: value if "/" not in name else value / weight if weight else math.nan for name, value in figures.items()
    }


def open_policies(run: Run[DPOConfig]) -> tuple[Policy, Path]:
    """The policy to train, with dropout off, and the folder of the reference."""
    folder = run.folder(run.spec.policy, "policy")
    reference = run.folder(run.spec.reference or str(folder), "reference policy")
    # Each look at the KL loads the reference beside the policy.
    needs = of_learner(folder, run.config) | {"reference": stored_parameters(reference) * WEIGHT}
    require_memory_for(run, needs, SMALLER)
    policy = load_policy(folder)
    policy.model.eval().requires_grad_(True)
    prepare(policy.model, run.config, run.spec.seed)  # a new adapter changes nothing yet: this is the reference still
    place(policy.model, run.device)
    return policy, reference


def reference_logprobs(run: Run[DPOConfig], policy: Policy, data: Judgments, total: int) -> Tensor:
    """log pi_ref of every answer, [N]. RunFailure where the reference reads other tokens, or is not finite."""
    reference = policy
    if run.spec.reference is not None:
        reference = load_policy(run.folder(run.spec.reference, "reference policy"))
        place(freeze(reference.model, run.config), run.device)
        if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            mend = "Name a reference with the same tokenizer, usually the policy itself."
            raise RunFailure("config", "The reference reads other tokens than the policy writes.", mend)
    pad_id, most = int(policy.tokenizer.pad_token_id), 2 * run.config.micro_batch_size
    read: list[float] = []
    for start in range(0, len(data.rows), READ_ROWS):
        run.progress(0, total, "reading the reference")
        if run.should_stop():
            raise Cancelled(0)
        some = data.rows[start : start + READ_ROWS]
        with torch.no_grad():
            read += run.world.spread(some, lambda mine: row_logprobs(reference.model, mine, pad_id, most).tolist())
    logprobs = torch.tensor(read)
    if not bool(logprobs.isfinite().all()):
        mend = "Check the checkpoint that the run starts from: its weights hold NaN, or overflow."
        raise RunFailure("data", "The reference gives some answers a probability that is no number.", mend)
    return logprobs
