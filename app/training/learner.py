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
from app.policy.checkpoint import load_policy, stop_ids
from app.policy.reward_model import load_reward_model, load_reward_tokenizer
from app.training.critic import Judge, ValueFunction
from app.training.experience import Experience, read
from app.training.failures import RunFailure
from app.training.kl import Beta
from app.training.optim import MuonAdamW
from app.training.order import Shuffler, derived_seed
from app.training.rollout import Batch, Episode, sample
from app.training.run import Run

logger = logging.getLogger("pairwright.training")


@dataclass(frozen=True)
class Prompt:
    """A prompt of the data and its token ids up to where the answer begins."""

    prompt_id: str
    ids: list[int]


class Learner:
    """Policy and value function with their optimizers, the frozen reference and judge, beta, and the prompts.

    Every network is in evaluation mode for good: dropout would make a sampled token and its probability strangers.
    """

    def __init__(self, run: Run[PPOConfig]) -> None:
        config = run.config
        self._config, self._seed = config, run.spec.seed
        folder = run.folder(run.spec.policy, "policy")
        self.policy, self.tokenizer = load_policy(folder)
        self.policy.eval().requires_grad_(True)
        self.reference = load_policy(run.folder(run.spec.reference or str(folder), "reference policy")).model
        self.reference.eval().requires_grad_(False)
        reward_folder = run.folder(run.spec.reward_model, "reward model")
        if load_reward_tokenizer(reward_folder).get_vocab() != self.tokenizer.get_vocab():
            mend = "Train a reward model on this policy, or on one with the same tokenizer."
            raise RunFailure("config", "The reward model reads other tokens than the policy writes.", mend)
        reward_model = load_reward_model(reward_folder)
        self.value = ValueFunction(reward_model)
        self.judge = Judge(reward_model, config.score_clip)

        muon = config.optimizer == "muon"
        self.policy_optimizer = MuonAdamW(
            self.policy.named_parameters(), lr=config.learning_rate, muon_lr=config.learning_rate if muon else None
        )
        self.value_optimizer = MuonAdamW(
            self.value.named_parameters(),
            lr=config.value_learning_rate,
            muon_lr=config.value_learning_rate if muon else None,
        )
        self.beta = Beta(config)
        self.good: dict[str, Tensor] = {}
        self.before: dict[str, float] = {}

        records = run.prompts()
        self.train_prompts = self._prompts([r for r in records if r.split is Split.TRAIN])
        if not self.train_prompts:
            mend = "Import prompts, or shorten them so that the policy's context has room for an answer."
            raise RunFailure("data", "There is no train prompt that the policy can answer.", mend)
        heldout = self._prompts([r for r in records if r.split is Split.HELDOUT][: config.evaluation_prompts])
        self._fixed = heldout or self.train_prompts[: config.evaluation_prompts]
        self._order = Shuffler(len(self.train_prompts), self._seed)

    def sample(self, iteration: int) -> list[Episode]:
        """The episodes of an iteration: the next train prompts, answered by the live policy."""
        prompts = [self.train_prompts[i] for i in self._order.take(self._config.batch_size)]
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
        )
        return read(batch, self.policy, self.reference, self.judge, self._config)

    def evaluate(self) -> dict[str, float]:
        """The policy on the fixed held-out prompts (train ones where there are none), always from the same seeds."""
        episodes = self._answers(self._fixed, self._fixed_seeds(len(self._fixed)))
        return self.read(episodes, 1, torch.Generator().manual_seed(0)).summary()

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
        self.good = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}

    def go_back_to_good(self) -> None:
        """Make the remembered policy the live one."""
        self.policy.load_state_dict(self.good)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "policy": self.policy.state_dict(),
            "value": self.value.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "value_optimizer": self.value_optimizer.state_dict(),
            "beta": self.beta.state_dict(),
            "order": self._order.state_dict(),
            "good": self.good,
            "before": self.before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.policy.load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.value_optimizer.load_state_dict(state["value_optimizer"])
        self.beta.load_state_dict(state["beta"])
        self._order.load_state_dict(state["order"])
        self.good, self.before = state["good"], state["before"]

    def _answers(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Episode]:
        return sample(
            self.policy,
            [prompt.ids for prompt in prompts],
            seeds,
            temperature=self._config.temperature,
            max_tokens=self._config.max_tokens,
            stops=stop_ids(self.policy, self.tokenizer),
            pad_id=int(self.tokenizer.pad_token_id),
        )

    def _fixed_seeds(self, count: int) -> list[int]:
        return [derived_seed(self._seed, "fixed", row) for row in range(count)]

    def _prompts(self, records: Sequence[PromptRecord]) -> list[Prompt]:
        """Encode; what the template refuses or what leaves no room for a whole answer is left out, said aloud."""
        context = getattr(self.policy.config, "max_position_embeddings", None)
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
