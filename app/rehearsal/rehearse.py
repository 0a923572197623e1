"""The whole loop unattended: serve, judge over HTTP, train, promote, and measure what came of it.

It uses the product from outside, as people do; docs/rehearsal.md documents the figures.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.core.configs import SamplingSettings
from app.rehearsal.annotators import Person, invite_people, judge_all
from app.rehearsal.baselines import measure_best_of, measure_dpo
from app.rehearsal.browser import RehearsalError
from app.rehearsal.installation import Installation
from app.rehearsal.measure import measure

SAMPLING = SamplingSettings()
"""The project's defaults, and the same for both policies."""


class Rehearsal:
    """One installation and the people who judge in it; judgments add up, so that one install gives several figures."""

    def __init__(self, installation: Installation, seed: int, say: Callable[[str], None]) -> None:
        self.installation = installation
        self.seed = seed
        self.say = say
        self.stages: dict[str, float] = {}
        self.judged = 0
        self.label_agreement = float("nan")
        self._people: list[Person] = []
        self._turned: tuple[str, str] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Says what goes on and notes the seconds."""
        self.say(f"{name} ...")
        began = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - began, 1)
        self.say(f"{name}: {self.stages[name]:.1f} s")

    def prepare(self, people: int) -> None:
        """Wait for the starter policy, then invite the annotators."""
        with self.stage("starter"):
            self.installation.wait_for_starter()
        with self.stage("invitations"):
            self._people = invite_people(self.installation.owner, self.installation.slug, people, self.seed)

    def judge(self, judgments: int) -> None:
        """Judge until `judgments` are given in all."""
        with self.stage("judging"):
            missing = judgments - self.judged
            where = self.installation
            judge_all(where.url, where.slug, self._people, missing, seed=self.seed * 7919 + self.judged)
            self.judged = judgments

    def turn(self) -> dict[str, Any]:
        """Train, promote and measure: the figures of docs/rehearsal.md."""
        where = self.installation
        reward, ppo = where.train(self.seed)
        with self.stage("reward_model"):
            where.wait_for_run(reward)
        with self.stage("ppo"):
            where.wait_for_run(ppo)
        with self.stage("promotion"):
            promoted = where.promote_newest()
        spec = where.spec(ppo)
        with self.stage("measuring"):
            figures, self.label_agreement, lines = measure(
                sft=where.folder(ppo, spec.policy),
                ppo=where.home / "checkpoints" / promoted,
                reward_model=where.folder(ppo, spec.reward_model),
                prompts_file=where.run_dir(ppo).prompts,
                preferences=where.run_dir(reward).preferences,
                sampling=SAMPLING,
                seed=self.seed,
            )
        for line in lines:
            self.say(line)
        self.say(summary(figures))
        self._turned = reward, ppo
        return {"seed": self.seed, "stages_s": dict(self.stages), **figures}

    def dpo(self) -> dict[str, Any]:
        """After a turn: DPO from the policy that PPO started from, on the judgments that the reward model was given."""
        where, (_, ppo) = self.installation, self._last_turn()
        start = where.spec(ppo).policy
        with self.stage("dpo"):
            run = where.train_dpo(self.seed, Path(str(start)).name)
            where.wait_for_run(run)
        with self.stage("measuring"):
            sft, made = where.folder(ppo, start), where.home / "checkpoints" / run
            return measure_dpo(sft, made, where.run_dir(ppo).prompts, SAMPLING, self.seed)

    def best_of(self, sizes: Sequence[int]) -> dict[str, Any]:
        """After a turn: the best of so many answers of the policy that PPO started from, by PPO's reward model."""
        where, (_, ppo) = self.installation, self._last_turn()
        spec = where.spec(ppo)
        with self.stage("best_of"):
            sft, judge = where.folder(ppo, spec.policy), where.folder(ppo, spec.reward_model)
            return measure_best_of(sft, judge, where.run_dir(ppo).prompts, sizes, SAMPLING, self.seed)

    def _last_turn(self) -> tuple[str, str]:
        if self._turned is None:
            raise RehearsalError("there was no turn of the loop yet to compare with")
        return self._turned


def rehearse(
    judgments: int = 300,
    seed: int = 0,
    people: int = 3,
    say: Callable[[str], None] = lambda line: None,
    home: Path | None = None,
) -> dict[str, Any]:
    """The whole loop once, in a fresh data folder that is removed afterwards, or in `home`, which stays."""
    with tempfile.TemporaryDirectory(prefix="pairwright-", ignore_cleanup_errors=True) as scratch:
        began = time.monotonic()
        with Installation(home or Path(scratch), say) as installation:
            rehearsal = Rehearsal(installation, seed, say)
            rehearsal.stages["start"] = round(time.monotonic() - began, 1)
            rehearsal.prepare(people)
            rehearsal.judge(judgments)
            figures = rehearsal.turn()
    figures["stages_s"]["total"] = round(time.monotonic() - began, 1)
    return figures


def summary(figures: dict[str, Any]) -> str:
    """The figures in a few lines, the floors beside the reward model."""
    model, contest = figures["reward_model"], figures["ppo_vs_sft"]
    taste, grammar = figures["taste"], figures["grammatical"]
    return f"""Reward model {model["accuracy_noiseless"]:.3f} on noiseless labels ({model["accuracy_noisy"]:.3f} noisy)
Floors: bag of words {model["bag_of_words"]:.3f}, longer wins {model["longer_wins"]:.3f}
PPO wins {contest["win_rate"]:.3f} [{contest["low"]:.3f}, {contest["high"]:.3f}] of {contest["n"]} against SFT
KL {figures["kl"]:.2f} nats; taste {taste["before"]:.2f} -> {taste["after"]:.2f}
Grammatical {grammar["before"]:.3f} -> {grammar["after"]:.3f}"""
