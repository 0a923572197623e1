"""The typed configuration of sampling and of each kind of run. Unknown keys are refused; every field says what it does.

They stand here, not in `training`, because the pages show them and check them without knowing torch.
"""

from pydantic import BaseModel, ConfigDict, Field

from app.core.vocabulary import RunKind


class Config(BaseModel):
    """Frozen settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingSettings(Config):
    """How completions are drawn from a policy."""

    temperature: float = Field(
        1.0, gt=0, le=5, description="Logits are divided by it; 1 samples from the policy itself."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the smallest set of tokens with this much probability.")
    max_tokens: int = Field(96, ge=1, le=4096, description="Longest completion, in tokens.")


class TrainConfig(Config):
    """What every kind of run shares."""

    checkpoint_every: int = Field(
        50, ge=1, description="Steps between whole checkpoints, from which a killed run resumes."
    )
    log_every: int = Field(5, ge=1, description="Steps between logged metrics.")
    threads: int = Field(0, ge=0, description="CPU threads of the training process; 0 leaves it to torch.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")


class SFTConfig(TrainConfig):
    """Supervised fine-tuning on demonstrations."""


class RewardConfig(TrainConfig):
    """A reward model learnt from comparisons."""


class PPOConfig(TrainConfig):
    """Proximal policy optimisation against a reward model, held near the reference by a KL penalty."""


CONFIGS: dict[RunKind, type[TrainConfig]] = {
    RunKind.SFT: SFTConfig,
    RunKind.REWARD: RewardConfig,
    RunKind.PPO: PPOConfig,
}
