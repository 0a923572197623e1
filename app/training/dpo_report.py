"""What DPO made of the policy: held-out judgments, the KL from the reference on fixed prompts, answers to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.core.agreement import wilson
from app.core.configs import DPOConfig, SamplingSettings
from app.core.errors import Invalid
from app.core.vocabulary import FinishReason, Split
from app.policy.chat import decode, encode_prompts
from app.policy.checkpoint import Policy, load_policy, stop_ids
from app.policy.engine import generate
from app.training.dpo_data import Judgments, Row, Side, row_logprobs
from app.training.dpo_losses import pair_figures, pair_losses
from app.training.failures import RunFailure
from app.training.models import freeze, place
from app.training.order import derived_seed
from app.training.run import Run


class Judged(NamedTuple):
    """Loss and rewards under TRL's names, each judgment weighing 1, and how many of the `strict` pairs (those with a
    better side) are ordered rightly.

    A pair of equal rewards is half right. Without any judgment there is no figure.
    """

    figures: dict[str, float]
    right: float
    strict: int


class Answer(NamedTuple):
    """Token ids of a sampled answer, and whether it was cut at `max_tokens`."""

    ids: list[int]
    cut: bool


class Report:
    """Measures the live policy of a run; the prompts that it answers, and the seeds, are always the same.

    `logprobs` [N] are the reference's, of all answers of the data. For the KL the reference is loaded anew each time,
    so that it takes no memory while the policy learns.
    """

    def __init__(
        self, run: Run[DPOConfig], policy: Policy, reference: Path, data: Judgments, logprobs: Tensor, beta: float
    ) -> None:
        self._run, self._policy, self._folder, self._data = run, policy, reference, data
        self._reference, self._beta = logprobs, beta
        self._pad, self._most = int(policy.tokenizer.pad_token_id), 2 * run.config.micro_batch_size
        self._prompts = self._fixed_prompts()

    def samples(self, step: int) -> None:
        """Answers to the first of the fixed prompts, into the run's samples."""
        shown = self._run.config.sample_prompts
        for (name, _), answer in zip(self._prompts[:shown], self._answers(shown), strict=True):
            self._run.sample(step, name, decode(self._policy.tokenizer, answer.ids))

    def look(self, step: int) -> tuple[Judged, dict[str, float]]:
        """Log the held-out judgments under TRL's names, and the answers to the fixed prompts."""
        heldout, answered = self.judged(self._data.heldout), self.answered()
        figures = {f"eval_{name}": value for name, value in heldout.figures.items()}
        self._run.log(step, "evaluate", **figures, **{f"eval/{name}": value for name, value in answered.items()})
        return heldout, answered

    def judged(self, side: Side) -> Judged:
        """One side of the split under the live policy."""
        pairs = side.pairs
        if not len(pairs.weight):
            return Judged({}, 0.0, 0)
        config, (ratios, logprobs) = self._run.config, self._read(side)
        losses = pair_losses(ratios, self._data.lengths, pairs, config.loss, self._beta, config.label_smoothing)
        sums = pair_figures(ratios, logprobs, pairs, self._beta)
        weight = sums.pop("weight")
        figures = {name: value / weight for name, value in sums.items()} if weight else {}
        figures["loss"] = float((losses * pairs.weight).sum() / pairs.weight.sum())
        ones = pair_figures(ratios, logprobs, pairs._replace(weight=torch.ones_like(pairs.weight)), self._beta)
        return Judged(figures, ones["rewards/accuracies"], round(ones["weight"]))

    def answered(self) -> dict[str, float]:
        """KL from the reference (k1, nats per sequence), length in tokens and cut share of answers to the prompts."""
        answers = self._answers(len(self._prompts))
        rows = [Row(ids, a.ids) for (_, ids), a in zip(self._prompts, answers, strict=True)]
        reference = place(freeze(load_policy(self._folder).model, self._run.config), self._run.device)
        here, there = (self._logprobs(model, rows) for model in (self._policy.model, reference))
        return {
            "kl": float((here - there).mean()),
            "length": sum(len(a.ids) for a in answers) / len(answers),
            "truncated_share": sum(a.cut for a in answers) / len(answers),
        }

    def result(self, step: int) -> dict[str, float | int | str | None]:
        """The last look, and the metrics of result.json. Accuracies count pairs with a better side, each as one."""
        heldout, answered = self.look(step)
        train = self.judged(self._data.train)
        low, high = wilson(heldout.right, heldout.strict)
        return {
            "heldout_accuracy": heldout.right / heldout.strict if heldout.strict else None,
            "heldout_low": low,
            "heldout_high": high,
            "heldout_n": heldout.strict,
            "longer_wins": self._data.heldout.longer_wins if heldout.strict else None,
            "train_accuracy": train.right / train.strict,
            "heldout_loss": heldout.figures.get("loss"),
            **answered,
            "beta": self._beta,
            "pairs_train": train.strict,
            **{f"left_out_{cause}": count for cause, count in self._data.left_out.items()},
        }

    def _read(self, side: Side) -> tuple[Tensor, Tensor]:
        """Log-ratios and log-probabilities [N]; of answers that no pair of the side points to, the reference's."""
        used = torch.cat([side.pairs.first, side.pairs.second]).unique()
        logprobs = self._reference.clone()
        logprobs[used] = self._logprobs(self._policy.model, [self._data.rows[i] for i in used.tolist()])
        return logprobs - self._reference, logprobs

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
        """Of each row, [n]; each process reads its share."""
        return torch.tensor(
            self._run.world.spread(rows, lambda some: row_logprobs(model, some, self._pad, self._most).tolist())
        )

    def _answers(self, count: int) -> list[Answer]:
        """To the first prompts, in order; each process samples its share."""
        model, tokenizer = self._policy
        sampling = SamplingSettings(max_tokens=self._run.config.max_tokens)

        def sample(rows: Sequence[tuple[list[int], int]]) -> list[tuple[list[int], bool]]:
            prompts, seeds = [prompt for prompt, _ in rows], [seed for _, seed in rows]
            found = generate(model, prompts, seeds, sampling, stop_ids(model, tokenizer), self._pad)
            return [(answer.token_ids, answer.finish is FinishReason.LENGTH) for answer in found]

        prompts = [ids for _, ids in self._prompts[:count]]
        rows = [(ids, derived_seed(self._run.spec.seed, "fixed", row)) for row, ids in enumerate(prompts)]
        return [Answer(ids, cut) for ids, cut in self._run.world.spread(rows, sample)]

    def _fixed_prompts(self) -> list[tuple[str, list[int]]]:
        """Ids and token ids of the first held-out prompts (train ones where there are none) with room for an answer."""
        config, context = self._run.config, getattr(self._policy.model.config, "max_position_embeddings", None)
        records = self._run.prompts()
        chosen = ([r for r in records if r.split is Split.HELDOUT] or records)[: config.evaluation_prompts]
        encoded = encode_prompts(self._policy.tokenizer, [r.prompt for r in chosen])
        fitting = [
            (record.prompt_id, ids)
            for record, ids in zip(chosen, encoded, strict=True)
            if not isinstance(ids, Invalid) and (context is None or len(ids) + config.max_tokens <= context)
        ]
        if not fitting:
            mend = "Add prompts, or lower max_tokens so that the policy's context has room for an answer."
            raise RunFailure("data", "There is no prompt that the policy can answer, to measure the KL on.", mend)
        return fitting
