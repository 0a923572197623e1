"""What an admin sets for a project: typed and bounded once, for the settings page and the command line."""

import uuid
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.core.vocabulary import Mode


def _empty(value: Any) -> Any:
    return None if value == "" else value


class ProjectSettings(BaseModel):
    """All of them at once. A switch that is not sent is off, as in a form; the descriptions are the page's words."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = Field(description="What annotators are asked to do.")
    answers: int = Field(4, ge=2, le=9, description="How many answers a ranking has; only for ranking.")
    allow_tie: bool = Field(False, description="Offer ‘about the same’.")
    allow_both_bad: bool = Field(False, description="Offer ‘both bad’, for pairs of which neither should ever be sent.")
    ask_strength: bool = Field(False, description="Ask how much better, in four steps a side; for pairs only.")

    ask_flags: bool = Field(False, description="Let people flag an answer: unsafe, wrong, off topic, broken.")
    ask_ratings: bool = Field(False, description="Let people rate each answer from 1 to 5.")
    ask_rationale: bool = Field(False, description="Let people say why, in their own words.")
    ask_ideal: bool = Field(False, description="Let people write a better answer; SFT learns from it.")

    votes_wanted: int = Field(
        ge=1, le=100, description="People who judge each comparison. Waiting comparisons follow at once."
    )
    cap: Annotated[int | None, BeforeValidator(_empty)] = Field(
        None, ge=1, le=2_000_000_000, description="Most judgments that one person may give; empty: no limit."
    )
    admins_judge: bool = Field(False, description="Admins are handed work as well.")
    lease_seconds: int = Field(
        ge=30, le=86_400, description="Seconds that a comparison is kept for whoever has it on their page."
    )

    gold_percent: float = Field(
        ge=0, le=50, description="Share of tasks, in percent, that are gold: the right answer is known, unmarked."
    )
    repeat_percent: float = Field(
        ge=0, le=50, description="Share of tasks, in percent, that people have judged before, unmarked."
    )
    qualify_on: int = Field(
        ge=0, le=100, description="Gold comparisons that everybody answers first, with explanations; 0: no round."
    )
    qualify_percent: float = Field(ge=50, le=100, description="Share of the round, in percent, that must be right.")

    chat_turns: int = Field(ge=1, le=50, description="Most turns of one conversation.")
    chat_policy_id: Annotated[uuid.UUID | None, BeforeValidator(_empty)] = Field(
        None, description="Who writes the second answer beside the current policy."
    )

    pool_target: int = Field(
        ge=0, le=10_000, description="Comparisons that are kept written ahead, so that nobody waits for a model."
    )
    temperature: float = Field(
        gt=0, le=5, description="Logits are divided by it; 1 samples from the policy itself, less is tamer."
    )
    top_p: float = Field(gt=0, le=1, description="Keep the smallest set of tokens with this much probability.")
    max_tokens: int = Field(ge=1, le=4096, description="Where an answer is cut off.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode is Mode.RANK and self.answers < 3:
            raise ValueError("a ranking has 3 to 9 answers; two answers are a pair")
        return self
