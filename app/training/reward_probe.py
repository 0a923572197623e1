"""A probe: read every answer with the frozen policy, choose the prior, fit linear scores, and give them their unit."""

import math
from typing import Any

import torch
from torch import Tensor

from app.core.configs import RewardConfig
from app.policy.checkpoint import Policy
from app.policy.reward_model import ProbeReward, RewardSettings, pack
from app.training import reward_fit
from app.training.models import require_finite_weights
from app.training.reward_checks import check_scores
from app.training.reward_data import Answer, Comparisons
from app.training.reward_report import Scored, calibrated, finish, log_step
from app.training.run import Run

CRITIC_RIDGE = 1e-3


def train(run: Run[RewardConfig], policy: Policy, data: Comparisons) -> None:
    """Steps are: one for each batch of answers read, one for each prior tried, one for each Newton step."""
    config, seed = run.config, run.spec.seed
    require_finite_weights(policy.model, "policy to read with")
    model = new_probe(policy, data, config)
    model.language_model.to(run.device)  # what is fitted to its features stays on the CPU
    rows = [*data.answers, *data.anchors]
    # Rows of like length are read together, so that little is padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].completion))
    parts = [order[j : j + config.micro_batch_size] for j in range(0, len(rows), config.micro_batch_size)]
    back = torch.empty(len(rows), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(rows))
    # Held-out answers are only scored: neither the critic nor the unit of the score is fitted on them.
    taught = torch.cat([data.taught(), torch.ones(len(data.anchors), dtype=torch.bool)])
    priors = [config.prior] if config.prior else list(reward_fit.PRIORS)
    total = len(parts) + len(priors) + config.newton_steps
    run.progress(0, total, "reading")

    restored = run.restore()
    state: dict[str, Any] = restored.tree if restored else {"features": [], "prefixes": [], "gram": 0.0, "tried": []}
    done = restored.step if restored else 0
    for step in range(done + 1, len(parts) + 1):
        part = parts[step - 1]
        features, prefixes, gram = read(model, [rows[i] for i in part], taught[part])
        check_scores(features, "features of answers")
        state["features"].append(features)
        state["prefixes"].append(prefixes)
        state["gram"] = state["gram"] + gram
        run.end_step(step, total, "reading", lambda: state)

    features = torch.cat(state["features"])[back]
    halve = config.ties == "half"
    hidden = [model.value.numel()] * len(model.reader.layers)
    design = reward_fit.design(
        features, data.train.pairs, hidden, model.reader.likelihood_width, config.label_smoothing
    )
    fold = reward_fit.folds_of([str(r.prompt) for r in data.train.records], design.pairs, seed)
    for step in range(max(done, len(parts)) + 1, len(parts) + len(priors) + 1):
        prior = priors[step - len(parts) - 1]
        found = reward_fit.cross_validate(design, fold, prior, config.newton_steps, halve)
        if [found.loss, prior] < min(state["tried"], default=[math.inf]):
            state["foreseen"] = found.margin
        state["tried"].append([found.loss, prior])
        run.log(step, "select", prior=prior, **{"cv/loss": found.loss, "cv/accuracy": found.accuracy})
        run.end_step(step, total, "choosing", lambda: state)

    prior = min(state["tried"])[1]
    share = reward_fit.resampled(design, data.train.units, config.members, seed)
    fit = reward_fit.Fit(**state["fit"]) if "fit" in state else reward_fit.start(design, config.members)
    for step in range(max(done, len(parts) + len(priors)) + 1, total + 1):
        fit = reward_fit.newton_step(design, fit, prior, share, halve)
        state["fit"] = {"weight": fit.weight, "eta": fit.eta}
        scores = (features.double() @ (fit.weight * design.scale).T).mean(1).float()
        log_step(run, step, "train", data, scores[: len(data.answers)], None if halve else fit.eta)
        run.end_step(step, total, "fitting", lambda: state)

    model.weight.data.copy_(fit.weight * design.scale)
    scores = (features @ model.weight.T).mean(1)
    start_critic(model, torch.cat(state["prefixes"])[back][taught], state["gram"], scores[taught])
    threshold = fit.eta if fit.eta > 0 and not halve else None
    answers, anchors = scores.split([len(data.answers), len(data.anchors)])
    calibration = calibrated(state.get("foreseen"), data.train.pairs, "cross-validation")
    scored = Scored(answers, anchors, threshold, calibration)
    finish(run, model, policy.tokenizer, data, scored, {"prior": prior, "kind": "probe"})


def new_probe(policy: Policy, data: Comparisons, config: RewardConfig) -> ProbeReward:
    """A probe of the policy that scores everything 0."""
    depth = int(policy.model.config.get_text_config().num_hidden_layers)
    settings = RewardSettings(
        kind="probe",
        pooling="mean" if config.pooling == "mean" else "sum",
        likelihood=config.likelihood,
        # What was said, and what it means where it stands: the embedding, and the layer at two thirds of the depth.
        layers=[0, -(-2 * depth // 3)],
        contrast=data.contrast if config.likelihood else [],
        members=config.members,
    )
    return ProbeReward(settings, policy.model)


def read(model: ProbeReward, part: list[Answer], taught: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [b, D] of answers. Of the last hidden states from which the tokens of those `taught` [b] are predicted,
    with a 1 appended: the sum over each answer [b, H + 1], and the Gram matrix over all [H + 1, H + 1]."""
    ids, _, answer = pack([a.prompt for a in part], [a.completion for a in part], model.pad_id)
    device = model.language_model.device
    with torch.no_grad():
        features = model.reader.features(model.language_model, ids.to(device), answer.to(device)).cpu()
        hidden = model.language_model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
    hidden = hidden.cpu().double()
    hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)[:, :-1]
    predicting = (answer[:, 1:] & taught.unsqueeze(1)).unsqueeze(-1)
    tokens = hidden[predicting[..., 0]]
    return features, (hidden * predicting).sum(1), tokens.T @ tokens


def start_critic(model: ProbeReward, prefixes: Tensor, gram: Tensor, scores: Tensor) -> None:
    """Least squares from each prefix's hidden state to the raw score of the whole answer, with a small ridge.

    prefixes [n, H + 1] and scores [n] are of the same answers as the Gram matrix.
    """
    ridge = CRITIC_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    ridge[-1, -1] = 0.0
    solution = torch.linalg.solve(gram + ridge, prefixes.T @ scores.double())
    model.value.data.copy_(solution[:-1])
    model.value_bias.data.copy_(solution[-1])
