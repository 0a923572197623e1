"""Supervised fine-tuning: maximise the likelihood of ideal answers. One pass over `plan`, one update a batch.

The loss of an update is the mean over its answer tokens of w * -log p(token | what stands before it), where w is
`copy_weight` for tokens that copy the prompt's telling tokens early in training and 1 for all others.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from app.core.configs import SamplingSettings, SFTConfig
from app.core.vocabulary import Split
from app.policy.chat import decode
from app.policy.checkpoint import Policy, embeddings_of, load_policy, save_policy, stop_ids
from app.policy.engine import generate
from app.policy.hidden import hidden_at
from app.policy.precision import compute_dtype
from app.policy.starter import new_starter
from app.training.failures import RunFailure
from app.training.logprobs import head_reading, in_chunks, plain_head
from app.training.memory import SMALLER, of_learner, require_memory_for
from app.training.models import load_state, place, prepare, state_of
from app.training.optim import MuonAdamW, lr_factor
from app.training.order import derived_seed
from app.training.packing import passes, require_packable
from app.training.processes import ALONE, World
from app.training.run import Run
from app.training.sft_data import Batch, Example, collate, encode, plan

PHASE = "train"


class Recipe(NamedTuple):
    """The settings whose default depends on what is trained."""

    learning_rate: float
    muon_learning_rate: float | None
    copy_weight: float
    curriculum: float
    sharpness: float


def recipe(config: SFTConfig, new: bool) -> Recipe:
    """Fill in what the configuration leaves open, for a new starter or for a policy that exists."""
    usual = Recipe(3e-3, 3e-3, 3.0, 0.15, 1.15) if new else Recipe(2e-5, None, 1.0, 0.0, 1.0)
    given = {name: value for name in Recipe._fields if (value := getattr(config, name)) is not None}
    chosen = usual._replace(**given)
    return chosen._replace(muon_learning_rate=chosen.muon_learning_rate or None)


def train(run: Run[SFTConfig]) -> None:
    """Train the run's policy, or a new starter where it names none, and leave it in final/."""
    config, seed = run.config, run.spec.seed
    new = run.spec.policy is None
    policy = new_starter(config.starter, seed) if new else _load(run)
    model, tokenizer = policy
    assert tokenizer.pad_token_id is not None
    chosen = recipe(config, new)
    require_lora_makes_sense(config, chosen, new)
    if config.packing:
        require_packable(model)
    place(prepare(model, config, seed), run.device)

    records = run.demonstrations()
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = config.max_length if context is None else min(config.max_length, context)
    learnt, skipped = encode([r for r in records if r.split is Split.TRAIN], tokenizer, limit)
    held, _ = encode([r for r in records if r.split is Split.HELDOUT], tokenizer, limit)
    held = held[: config.eval_rows]
    if not learnt:
        mend = "Import demonstrations, or raise max_length if all were too long for it."
        message = f"There is no demonstration to learn from ({skipped} have more than {limit} tokens)."
        raise RunFailure("data", message, mend)
    batches = plan(
        learnt,
        seed=seed,
        batch_size=config.batch_size,
        epochs=config.epochs,
        curriculum=chosen.curriculum,
        curriculum_rows=config.curriculum_rows,
        most=config.max_steps,
    )
    total = len(batches)

    model.train()
    optimizer = MuonAdamW(
        model.named_parameters(),
        lr=chosen.learning_rate,
        muon_lr=chosen.muon_learning_rate,
        weight_decay=config.weight_decay,
    )
    tokens, started = 0, time.monotonic()
    state = run.restore()
    if state:
        load_state(model, state.tree["model"])
        optimizer.load_state_dict(state.tree["optimizer"])
    first = state.step + 1 if state else 1
    for step in range(first, total + 1):
        rows = [learnt[i] for i in batches[step - 1]]
        weight = 1 + (chosen.copy_weight - 1) * max(0.0, 1 - (step - 1) / (config.copy_weight_share * total))
        room = config.max_length if config.packing else None
        loss, accuracy = _accumulate(
            model, rows, weight, config.micro_batch_size, tokenizer.pad_token_id, room, run.world
        )
        run.require_finite(step, loss=loss)
        run.world.sum_gradients(optimizer.parameters)
        factor = lr_factor(step - 1, total, config.warmup_steps, config.schedule)
        norm = optimizer.step(config.gradient_clip, factor)
        optimizer.zero_grad()
        tokens += sum(map(len, rows))
        if step % config.log_every == 0 or step in (1, total):
            run.log(
                step,
                PHASE,
                loss=loss,
                mean_token_accuracy=accuracy,
                grad_norm=norm,
                learning_rate=chosen.learning_rate * factor,
                tokens_per_s=tokens / (time.monotonic() - started),
            )
        if step % config.eval_every == 0 and step < total:
            _look(run, step, policy, held)
        run.end_step(step, total, PHASE, lambda: {"model": state_of(model), "optimizer": optimizer.state_dict()})

    seconds = time.monotonic() - started
    sharpen(model, chosen.sharpness)
    nll = _look(run, total, policy, held)
    run.finish(
        lambda folder: _save(folder, policy),
        {
            "heldout_nll": nll,
            "perplexity": None if nll is None else math.exp(nll),
            "heldout_n": len(held),
            "demonstrations": len(learnt),
            "too_long": skipped,
            "tokens_per_s": tokens / seconds if tokens else None,
        },
    )


def _load(run: Run[SFTConfig]) -> Policy:
    folder = run.folder(run.spec.policy, "policy")
    require_memory_for(run, of_learner(folder, run.config), SMALLER)
    return load_policy(folder)


def require_lora_makes_sense(config: SFTConfig, chosen: Recipe, new: bool) -> None:
    """RunFailure where an adapter could not hold what is learnt."""
    if config.lora_rank and new:
        mend = "Set lora_rank to 0, or name a policy to start from."
        raise RunFailure("config", "LoRA adapts a policy that exists; a new starter has nothing to adapt.", mend)
    if config.lora_rank and chosen.sharpness != 1:
        mend = "Leave sharpness at 1 and sample at a temperature."
        raise RunFailure("config", "sharpness changes a weight that LoRA leaves frozen.", mend)


def sharpen(model: PreTrainedModel, factor: float) -> None:
    """Multiply a Llama's logits by `factor`, for good: its head has no bias and its last norm is a plain scale."""
    if factor == 1:
        return
    if not isinstance(model, LlamaForCausalLM):
        raise RunFailure(
            "config", "sharpness is for Llama models.", "Leave sharpness at 1 and sample at a temperature."
        )
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)


def _accumulate(
    model: PreTrainedModel,
    rows: Sequence[Example],
    copy_weight: float,
    micro: int | None,
    pad_id: int,
    room: int | None = None,
    world: World = ALONE,
) -> tuple[float, float]:
    """Add this process's part of the gradient of one update's loss, the same whatever `micro` and `room`; the
    unweighted loss and accuracy of the whole update."""
    weights = sum(sum(copy_weight if c else 1.0 for c in row.copied) for row in rows)
    count = sum(len(row.completion) for row in rows)
    loss = right = 0.0
    for batch in passes(world.share(rows), micro, room, pad_id):
        nll, hits = answer_nll(model, batch)
        scale = torch.where(batch.copied[:, 1:][batch.targets[:, 1:]].to(nll.device), copy_weight, 1.0)
        ((nll * scale).sum() / weights).backward()
        loss += nll.detach().sum().item() / count
        right += hits / count
    whole = world.sum({"loss": loss, "right": right})
    return whole["loss"], whole["right"]


def answer_nll(model: PreTrainedModel, batch: Batch, reduction: str = "none") -> tuple[Tensor, int]:
    """-log p of all n answer tokens of a batch, [n] in nats, differentiable; and how many were the most likely ones.

    Reduction "sum" gives their sum, [], instead. Rows are padded on the right, behind everything a causal model looks
    at, so no attention mask is needed. Where the logits would be many, or the model multiplies in bf16, a head that
    only multiplies is read in chunks.
    """
    head = plain_head(model)
    if head is None or not in_chunks(model, head, int(batch.targets[:, 1:].sum())):
        logits, tokens = completion_logits(model, batch)
        hits = int((logits.detach().argmax(-1) == tokens).sum())
        return F.cross_entropy(logits, tokens, reduction=reduction), hits
    hidden, tokens = completion_states(model, batch)
    best = torch.empty_like(tokens)
    lowered = compute_dtype(model) is torch.bfloat16
    reading = head_reading(hidden, head.weight, head.bias, tokens, best=best, lowered=lowered)
    nll = -reading.logprobs
    return nll.sum() if reduction == "sum" else nll, int((best == tokens).sum())


def completion_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [n, V] in float32 of all n answer tokens of a batch, and those tokens [n]."""
    head = plain_head(model)
    if head is not None:
        hidden, tokens = completion_states(model, batch)
        return head(hidden).float(), tokens
    ids, places, row, position = _places(model, batch)
    logits = model(input_ids=ids, use_cache=False, **places).logits[row, position]
    return logits.float(), ids[row, position + 1]


def completion_states(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden states [n, H] from which the n answer tokens of a batch are predicted, and those tokens [n]."""
    ids, places, row, position = _places(model, batch)
    if places:  # packed: attention must be told where an example begins
        hidden = model.base_model(input_ids=ids, use_cache=False, **places).last_hidden_state[row, position]
    else:
        hidden = hidden_at(model, ids, row, position)
    return hidden, ids[row, position + 1]


def _places(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Ids, position ids where rows are packed, and row and column before each answer token, on the model's device."""
    device = embeddings_of(model).device
    places = {} if batch.positions is None else {"position_ids": batch.positions.to(device)}
    row, position = batch.targets[:, 1:].to(device).nonzero(as_tuple=True)
    return batch.ids.to(device), places, row, position


def _look(run: Run[SFTConfig], step: int, policy: Policy, held: Sequence[Example]) -> float | None:
    """Log the loss on held-out demonstrations and a few answers to their prompts; nats per token, None without any."""
    if not held:
        return None
    model, tokenizer = policy
    pad_id = tokenizer.pad_token_id
    assert pad_id is not None
    model.eval()
    nll = 0.0
    right = count = 0
    with torch.no_grad():
        for start in run.world.share(range(0, len(held), run.config.batch_size)):
            batch = collate(held[start : start + run.config.batch_size], pad_id)
            value, hits = answer_nll(model, batch, "sum")
            nll += value.item()
            right += hits
            count += int(batch.targets[:, 1:].sum())
    whole = run.world.sum({"nll": nll, "right": right, "count": count})
    nll, accuracy = whole["nll"] / whole["count"], whole["right"] / whole["count"]

    def answers(shown: Sequence[tuple[Example, int]]) -> list[list[int]]:
        prompts, seeds = [example.prompt for example, _ in shown], [seed for _, seed in shown]
        found = generate(model, prompts, seeds, SamplingSettings(), stop_ids(model, tokenizer), pad_id)
        return [answer.token_ids for answer in found]

    shown = [(e, derived_seed(run.spec.seed, "sample", i)) for i, e in enumerate(held[: run.config.sample_prompts])]
    for (example, _), ids in zip(shown, run.world.spread(shown, answers), strict=True):
        run.sample(step, example.prompt_id, decode(tokenizer, ids))
    model.train()
    run.log(step, "eval", eval_loss=nll, eval_mean_token_accuracy=accuracy)
    return nll


def _save(folder: Path, policy: Policy) -> None:
    policy.model.eval()
    save_policy(folder, *policy)
