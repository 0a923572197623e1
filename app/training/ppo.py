"""Proximal policy optimisation for language models (Ziegler et al. 2019; Ouyang et al. 2022; Schulman et al. 2017).

Maximises E[score(prompt, answer)] - beta KL(policy || reference). One iteration samples answers from the live policy,
scores them, makes a reward of each token, estimates advantages, and updates policy and value function on clipped
objectives. KL and entropy are in nats; a sequence's is the sum over its answer's tokens.
"""

import logging
import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from app.core.configs import PPOConfig
from app.policy.checkpoint import save_policy
from app.training import losses
from app.training.learner import Learner
from app.training.optim import lr_factor
from app.training.order import derived_seed
from app.training.ptx import ptx_gradient
from app.training.rollout import Batch, Minibatch, read_answers
from app.training.run import Run

logger = logging.getLogger("pairwright.training")


def train(run: Run[PPOConfig]) -> None:
    """Train the policy of the run's spec against its reward model; final/ then holds a policy."""
    config, total = run.config, run.config.iterations
    learner = Learner(run)
    state = run.restore()
    if state:
        learner.load_state_dict(state.tree)
    else:
        run.progress(0, total, "evaluating")
        learner.before = learner.evaluate()
        run.log(0, "evaluate", **{f"eval/{name}": value for name, value in learner.before.items()})
        learner.log_samples(run, 0)
    done = state.step if state else 0
    run.progress(done, total, "sampling")

    over_budget = False
    for iteration in range(done + 1, total + 1):
        clock = Clock()
        generator = torch.Generator().manual_seed(derived_seed(run.spec.seed, "cut", iteration))

        # Sample: train prompts only, from the whole distribution of the live policy.
        episodes = learner.sample(iteration)
        clock.lap("time/sample")

        # Score: policy, reference, judge and value function read the same micro-batches in training precision.
        run.progress(iteration - 1, total, "scoring")
        seen = learner.read(episodes, config.minibatches, generator)
        values = seen.batch.per_token(learner.value)
        run.require_finite(iteration, logprobs=float(seen.logprobs.sum()), values=float(values.sum()))

        # Budget: a policy that went too far learns no more, and the last one within the budget is what is left.
        sequence_kl = run.world.agreed(seen.sequence_kl)
        if config.kl_budget is not None:
            if sequence_kl > config.kl_budget:
                over_budget = True
                run.log(iteration, "stop", **seen.metrics(learner.beta.value))
                break
            learner.keep_as_good()

        # Reward: the price of KL on every token, the score on the last.
        rewards = losses.token_rewards(seen.scores, seen.kl, seen.batch.mask, learner.beta.value)

        # Advantage: whitened over the real tokens of the whole batch.
        advantages, returns = losses.gae(rewards, values, seen.batch.mask, config.gamma, config.gae_lambda)
        targets = Targets(seen.logprobs, losses.whiten(advantages, seen.batch.mask), values, returns)
        clock.lap("time/score")

        # Update.
        run.progress(iteration - 1, total, "updating")
        updates = update(run, learner, iteration, seen.batch, targets, generator)
        clock.lap("time/update")

        if iteration % config.log_every == 0 or iteration == total:
            variance = losses.explained_variance(values, returns, seen.batch.mask)
            run.log(
                iteration,
                "train",
                **seen.metrics(learner.beta.value),
                **updates,
                **{"value/explained_variance": variance},
                episode=iteration * config.batch_size,
                eps=config.batch_size / clock.total(),
                **clock.laps,
            )
        if iteration % config.sample_every == 0 or iteration == total:
            learner.log_samples(run, iteration)
        learner.beta.update(sequence_kl)
        run.end_step(iteration, total, "sampling", learner.state_dict)

    finish(run, learner, iteration, over_budget)


@dataclass(frozen=True)
class Targets:
    """What an update works towards, [B, T] each: the sampler's log-probabilities and values, advantages, returns."""

    logprobs: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor


def update(
    run: Run[PPOConfig], learner: Learner, iteration: int, batch: Batch, targets: Targets, generator: torch.Generator
) -> dict[str, float]:
    """`epochs` passes over the batch, one step of each optimizer a minibatch; averages over the steps, to log.

    The policy rests during the value function's warm-up, and for the rest of the batch once a minibatch shows that it
    is further than `approx_kl_stop` from the policy that sampled.
    """
    config = run.config
    factor = lr_factor(
        iteration - 1, config.iterations, config.warmup_iterations, config.schedule, config.schedule_floor
    )
    seen: dict[str, list[float]] = defaultdict(list)
    policy_learns = iteration > config.value_warmup
    for _ in range(config.epochs):
        for index in torch.randperm(config.minibatches, generator=generator).tolist():
            minibatch = batch.minibatches[index]
            figures = value_gradient(learner, minibatch, targets, config)
            run.require_finite(iteration, **figures)
            run.world.sum_gradients(learner.value_optimizer.parameters)
            figures["value/grad_norm"] = learner.value_optimizer.step(config.gradient_clip, factor)
            if policy_learns:
                figures |= policy_gradient(learner, minibatch, targets, config)
                run.require_finite(iteration, **figures)
                limit = config.approx_kl_stop
                policy_learns = limit is None or figures["policy/approxkl_avg"] <= limit
            if policy_learns:
                figures |= demonstration_gradient(learner, config)
                run.require_finite(iteration, **figures)
                run.world.sum_gradients(learner.policy_optimizer.parameters)
                figures["policy/grad_norm"] = learner.policy_optimizer.step(config.gradient_clip, factor)
            for name, value in figures.items():
                seen[name].append(value)
    averages = {name: sum(values) / len(values) for name, values in seen.items()}
    errors = seen["policy/ratio_error"] or [0.0]
    return averages | {
        "policy/ratio_error": max(errors),
        "policy/first_ratio_error": errors[0],
        "policy/updates": len(seen["policy/grad_norm"]),
        "lr": factor * config.learning_rate,
    }


def policy_gradient(learner: Learner, minibatch: Minibatch, targets: Targets, config: PPOConfig) -> dict[str, float]:
    """Leave the gradient of the clipped objective, a mean over the minibatch's tokens, in the policy.

    Here as below it is this process's part of the gradient, and the figures are the whole minibatch's.
    """
    learner.policy_optimizer.zero_grad()
    parts = []
    for micro in minibatch.micro:
        logprobs = read_answers(learner.policy, micro, config.temperature).logprobs
        part = losses.ppo_policy_loss(
            logprobs,
            micro.of(targets.logprobs),
            micro.of(targets.advantages),
            torch.ones_like(logprobs),
            clip=config.ratio_clip,
            clamp=config.log_ratio_clamp,
            count=minibatch.count,
        )
        part.loss.backward()
        parts.append([float(figure.detach()) for figure in part])
    loss, clip_share, approx_kl, ratio, errors = zip(*parts, strict=True) if parts else ((),) * 5
    figures = {
        "loss/policy_avg": sum(loss),
        "policy/clipfrac_avg": sum(clip_share),
        "policy/approxkl_avg": sum(approx_kl),
        "val/ratio": sum(ratio),
        "policy/ratio_error": max(errors, default=0.0),
    }
    return learner.world.sum(figures, largest=["policy/ratio_error"])


def demonstration_gradient(learner: Learner, config: PPOConfig) -> dict[str, float]:
    """Add the gradient of `ptx_weight` x the loss on as many demonstrations as a minibatch has answers."""
    if learner.demonstrations is None:
        return {}
    rows = learner.demonstrations.take(config.batch_size // config.minibatches)
    pad_id = int(learner.tokenizer.pad_token_id)
    return ptx_gradient(learner.policy, rows, config.ptx_weight, config.micro_batch_size, pad_id, learner.world)


def value_gradient(learner: Learner, minibatch: Minibatch, targets: Targets, config: PPOConfig) -> dict[str, float]:
    """Leave the gradient of the clipped regression, a mean over the minibatch's tokens, in the value function."""
    learner.value_optimizer.zero_grad()
    parts = []
    for micro in minibatch.micro:
        values = learner.value(micro)
        part = losses.ppo_value_loss(
            values,
            micro.of(targets.values),
            micro.of(targets.returns),
            torch.ones_like(values),
            clip=config.value_clip,
            count=minibatch.count,
        )
        part.loss.backward()
        parts.append([float(figure.detach()) for figure in part])
    loss, clip_share = zip(*parts, strict=True) if parts else ((), ())
    return learner.world.sum({"loss/value_avg": sum(loss), "val/clipfrac_avg": sum(clip_share)})


def finish(run: Run[PPOConfig], learner: Learner, iteration: int, over_budget: bool) -> None:
    """Measure the policy on the fixed prompts, go back to the last one within the KL budget if need be, and save."""
    config = run.config
    run.progress(iteration, config.iterations, "evaluating")
    after = learner.evaluate()
    if config.kl_budget is not None and (over_budget or after["kl"] > config.kl_budget):
        over_budget = True
        logger.warning(
            "the KL budget of %g nats per sequence is spent: keeping the last policy in it", config.kl_budget
        )
        learner.go_back_to_good()
        after = learner.evaluate()
    run.log(iteration, "evaluate", **{f"eval/{name}": value for name, value in after.items()})
    run.finish(
        lambda folder: save_policy(folder, learner.policy, learner.tokenizer),
        {
            **after,
            **{f"{name}_before": value for name, value in learner.before.items()},
            "beta": learner.beta.value,
            "episodes": iteration * config.batch_size,
            "stopped_by": "kl_budget" if over_budget else None,
        },
    )


class Clock:
    """Seconds of each part of an iteration."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Give the time since the last lap a name."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    def total(self) -> float:
        """Seconds up to the last lap."""
        return self._last - self._start
