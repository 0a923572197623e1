"""The four networks of PPO, and everything of theirs that changes during a run and must outlive a kill."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.core.configs import PPOConfig
from app.core.errors import Invalid
from app.core.records import PromptRecord
from app.core.vocabulary import Split
from app.policy.chat import decode, encode_prompts
from app.policy.checkpoint import stop_ids
from app.training.experience import Experience, read
from app.training.failures import RunFailure
from app.training.kl import Beta
from app.training.models import learning, load_state, state_of
from app.training.networks import open_networks
from app.training.optim import MuonAdamW
from app.training.order import Shuffler, derived_seed
from app.training.ptx import Demonstrations
from app.training.rollout import Batch, Episode, sample
from app.training.run import Run

logger = logging.getLogger("pairwright.training")


@dataclass(frozen=True)
class Prompt:
    """A prompt of the data and its token ids up to where the answer begins."""

    prompt_id: str
    ids: list[int]


class Learner:
    """Policy and value function with their optimizers, the frozen reference and judge, beta, and the prompts."""

    def __init__(self, run: Run[PPOConfig]) -> None:
        config = run.config
        self._config, self._seed = config, run.spec.seed
        self.world = run.world
        networks = open_networks(run)
        self.policy, self.tokenizer, self.reference = networks.policy, networks.tokenizer, networks.reference
        self.judge, self.value = networks.judge, networks.value

        muon = config.optimizer == "muon"
        self.policy_optimizer = MuonAdamW(
            learning(self.policy), lr=config.learning_rate, muon_lr=config.learning_rate if muon else None
        )
        self.value_optimizer = MuonAdamW(
            self.value.named_parameters(),
            lr=config.value_learning_rate,
            muon_lr=config.value_learning_rate if muon else None,
        )
        self.beta = Beta(config)
        self.good: dict[str, Tensor] = {}
        self.before: dict[str, float] = {}

        self._context = getattr(self.policy.config.get_text_config(), "max_position_embeddings", None)
        if self._context is not None and config.max_tokens >= self._context:
            message = (
                f"max_tokens {config.max_tokens} leaves no prompt room in the policy's context of {self._context}."
            )
            raise RunFailure("config", message, "Lower max_tokens, or start from a policy with a longer context.")
        records = run.prompts()
        self.train_prompts = self._prompts([r for r in records if r.split is Split.TRAIN])
        if not self.train_prompts:
            mend = "Import prompts, or shorten them so that the policy's context has room for an answer."
            raise RunFailure("data", "There is no train prompt that the policy can answer.", mend)
        self.demonstrations: Demonstrations | None = None
        if config.ptx_weight:
            self.demonstrations = Demonstrations(run.demonstrations(), self.tokenizer, self._context, self._seed)
        heldout = self._prompts([r for r in records if r.split is Split.HELDOUT][: config.evaluation_prompts])
        self._fixed = heldout or self.train_prompts[: config.evaluation_prompts]
        self._order = Shuffler(len(self.train_prompts), self._seed)

    def sample(self, iteration: int) -> list[Episode]:
        """The episodes of an iteration: the next train prompts, answered by the live policy."""
        many = self._config.rollouts_per_prompt
        drawn = self._order.take(self._config.batch_size // many)
        prompts = [self.train_prompts[i] for i in drawn for _ in range(many)]
        return self._answers(prompts, [derived_seed(self._seed, iteration, row) for row in range(len(prompts))])

    def read(self, episodes: Sequence[Episode], minibatches: int, generator: torch.Generator) -> Experience:
        """Cut a batch, and read it with policy, reference and judge."""
        batch = Batch(
            episodes,
            pad_id=int(self.tokenizer.pad_token_id),
            minibatches=minibatches,
            micro_batch_size=self._config.micro_batch_size,
            generator=generator,
            device=self.policy.device,
            world=self.world,
        )
        return read(batch, self.policy, self.reference, self.judge, self._config)

    def evaluate(self) -> dict[str, float]:
        """The policy on the fixed held-out prompts (train ones where there are none), always from the same seeds."""
        episodes = self._answers(self._fixed, self._fixed_seeds(len(self._fixed)))
        return self.world.agreed(self.read(episodes, 1, torch.Generator().manual_seed(0)).summary())

    def log_samples(self, run: Run[PPOConfig], step: int) -> None:
        """Answers to the first of the fixed prompts, with their scores, into the run's samples."""
        prompts = self._fixed[: self._config.sample_prompts]
        if not prompts:
            return
        episodes = self._answers(prompts, self._fixed_seeds(len(prompts)))
        scores = self.read(episodes, 1, torch.Generator().manual_seed(0)).scores.tolist()
        for prompt, episode, score in zip(prompts, episodes, scores, strict=True):
            run.sample(step, prompt.prompt_id, decode(self.tokenizer, episode.answer), score)

    def keep_as_good(self) -> None:
        """Remember the policy as it is now."""
        self.good = {name: tensor.detach().clone() for name, tensor in state_of(self.policy).items()}

    def go_back_to_good(self) -> None:
        """Make the remembered policy the live one."""
        load_state(self.policy, self.good)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        state = {
            "policy": state_of(self.policy),
            "value": self.value.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "value_optimizer": self.value_optimizer.state_dict(),
            "beta": self.beta.state_dict(),
            "order": self._order.state_dict(),
            "good": self.good,
            "before": self.before,
        }
        return state | ({"demonstrations": self.demonstrations.state_dict()} if self.demonstrations else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        load_state(self.policy, state["policy"])
        self.value.load_state_dict(state["value"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.value_optimizer.load_state_dict(state["value_optimizer"])
        self.beta.load_state_dict(state["beta"])
        self._order.load_state_dict(state["order"])
        self.good, self.before = state["good"], state["before"]
        if self.demonstrations:
            self.demonstrations.load_state_dict(state["demonstrations"])

    def _answers(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Episode]:
        """One episode a prompt, in order; each process samples its share, and gets all."""

        def answers(rows: Sequence[tuple[list[int], int]]) -> list[tuple[list[int], list[int], bool, list[float]]]:
            episodes = sample(
                self.policy,
                [ids for ids, _ in rows],
                [seed for _, seed in rows],
                temperature=self._config.temperature,
                max_tokens=self._config.max_tokens,
                stops=stop_ids(self.policy, self.tokenizer),
                pad_id=int(self.tokenizer.pad_token_id),
            )
            return [(e.prompt, e.answer, e.ended, e.sampler_logprobs) for e in episodes]

        rows = [(prompt.ids, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return [Episode(*row) for row in self.world.spread(rows, answers)]

    def _fixed_seeds(self, count: int) -> list[int]:
        return [derived_seed(self._seed, "fixed", row) for row in range(count)]

    def _prompts(self, records: Sequence[PromptRecord]) -> list[Prompt]:
        """Encode; what the template refuses or what leaves no room for a whole answer is left out, said aloud."""
        context = self._context
        kept, refused = [], 0
        every = encode_prompts(self.tokenizer, [r.prompt for r in records])
        for record, ids in zip(records, every, strict=True):
            if isinstance(ids, Invalid):
                refused += 1
            elif context is None or len(ids) + self._config.max_tokens <= context:
                kept.append(Prompt(record.prompt_id, ids))
        if len(kept) < len(records):
            logger.warning(
                "%d of %d prompts are left out: %d refused by the chat template, the rest too long for a context of %s",
                len(records) - len(kept),
                len(records),
                refused,
                context,
            )
        return kept
