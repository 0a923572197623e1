"""The typed configuration of sampling and of each kind of run. Unknown keys are refused; every field says what it does.

They stand here, not in `training`, because the pages show them and check them without knowing torch.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.vocabulary import RunKind


class Config(BaseModel):
    """Frozen settings that refuse what they do not know, and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where it computes; auto: on the GPU where there is one, else on the CPU."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the matrix products inside a model; weights, losses and heads stay in fp32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute a layer's activations again in the backward pass instead of keeping them."
    )
    lora_rank: int = Field(0, ge=0, le=4096, description="Rank of LoRA adapters; 0 trains the whole model.")
    lora_alpha: float | None = Field(
        None, gt=0, description="LoRA: adapters count alpha / rank times; empty: twice the rank."
    )
    lora_targets: str = Field(
        "all-linear",
        min_length=1,
        description="LoRA: names of the layers to adapt, with commas between; all-linear: all but the output head.",
    )

    @model_validator(mode="after")
    def _fits_lora(self) -> Self:
        # Both ways in which the kinds of run ask for Muon.
        muon = getattr(self, "optimizer", "adamw") == "muon" or bool(getattr(self, "muon_learning_rate", None))
        if self.lora_rank and muon:
            raise ValueError("Muon is made for whole matrices: train LoRA's factors with AdamW, or set lora_rank 0")
        return self


class SFTConfig(TrainConfig):
    """Supervised fine-tuning on demonstrations; only the answer's tokens count.

    Where a field may be left out, its value depends on what is trained: a new starter, or a policy that exists.
    """

    starter: Literal["standard", "tiny"] = Field("standard", description="Size of a new starter policy.")
    epochs: int = Field(1, ge=1, description="Passes over the demonstrations.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many updates; empty: all of them.")
    batch_size: int = Field(32, ge=1, description="Demonstrations in each update.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Most rows in one forward pass, for memory; empty: as many as are of like length."
    )
    max_length: int = Field(
        512, ge=8, description="Longest conversation with its answer, in tokens; longer ones are left out and counted."
    )
    packing: bool = Field(
        False,
        description="Lay the demonstrations of an update end to end in rows of at most max_length tokens, each read as "
        "if it stood alone: less padding, never another result. micro_batch_size then counts these rows.",
    )

    learning_rate: float | None = Field(
        None, ge=0, description="AdamW's peak learning rate; empty: 3e-3 for a new starter, 2e-5 else."
    )
    muon_learning_rate: float | None = Field(
        None,
        ge=0,
        description="Muon's peak learning rate on hidden matrices, 0 for AdamW alone; empty: 3e-3 for a new starter, "
        "0 else.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    warmup_steps: int = Field(20, ge=0, description="Updates over which the learning rate rises.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="How the learning rates fall.")

    copy_weight: float | None = Field(
        None,
        ge=1,
        description="Weight in the loss of an answer's tokens that repeat the prompt's telling tokens (those in fewer "
        "than half of the prompts), falling to 1 over copy_weight_share; empty: 3 for a new starter, 1 else.",
    )
    copy_weight_share: float = Field(0.5, gt=0, le=1, description="Share of the updates over which copy_weight falls.")
    curriculum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Updates before the first pass, as a share of those of all passes, on the demonstrations that copy "
        "most from their prompts: a new model has to discover copying. They are short, so twice as many go into a "
        "batch. Empty: 0.15 for a new starter, none else.",
    )
    curriculum_rows: float = Field(0.1, gt=0, le=1, description="Share of the demonstrations used by the curriculum.")

    sharpness: float | None = Field(
        None,
        gt=0,
        le=3,
        description="Factor on the trained model's logits, folded into its last norm: it then samples as it would have "
        "at temperature 1 / sharpness. Counters the mass that a short training leaves on wrong tokens. Empty: 1.15 for "
        "a new starter, 1 else.",
    )

    eval_every: int = Field(100, ge=1, description="Updates between looks at the held-out demonstrations.")
    eval_rows: int = Field(256, ge=1, description="Held-out demonstrations looked at.")
    sample_prompts: int = Field(4, ge=0, description="Held-out prompts answered at each look, for people to read.")


class RewardConfig(TrainConfig):
    """A reward model learnt from comparisons.

    A probe reads a frozen copy of the policy and fits linear scores to convergence; a head fine-tunes the whole model.
    """

    checkpoint_every: int = Field(20, ge=1, description="Steps between whole checkpoints.")
    log_every: int = Field(1, ge=1, description="Steps between logged metrics.")

    kind: Literal["auto", "probe", "head"] = Field(
        "auto", description="Probe or head; auto: a probe where the policy has fewer than 50 million parameters."
    )
    pooling: Literal["auto", "last", "mean", "sum"] = Field(
        "auto",
        description="Over the answer's tokens; auto: last for a head (loads plainly elsewhere), sum for a probe.",
    )
    ties: Literal["rao-kupper", "half"] = Field(
        "rao-kupper", description="Ties by a learnt threshold, or as half a win for each side. Both bad is a tie."
    )
    rankings: Literal["pairs", "plackett-luce"] = Field(
        "pairs",
        description="A ranking of three or more without ties as all its pairs, or as choices from what is left "
        "(Plackett-Luce). Rankings with ties are always pairs.",
    )
    votes: Literal["each", "averaged"] = Field(
        "each",
        description="Several votes on one comparison: each weighs as a judgment of its own, or they are averaged into "
        "one soft label.",
    )
    strength_margin: float = Field(
        0.0,
        ge=0,
        description="Margin in log-odds that a preference of strength 4 asks for; 1 asks for none, 2 and 3 for a third "
        "and two thirds of it. 0: no margins.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of preferences taken to be the wrong way round. 0: none."
    )
    max_length: int = Field(
        512, ge=8, description="Longest prompt and answer, in tokens; prompts lose their beginning."
    )
    bad_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Judgments with an empty prompt or answer, or an answer longer than max_length: refuse to start, "
        "or leave them out and count them.",
    )
    require_heldout: bool = Field(
        True, description="Refuse to start where no judgment is left to measure on; off: train without those figures."
    )
    micro_batch_size: int = Field(32, ge=1, description="Rows in one forward pass: memory and speed, never the result.")
    anchor_demonstrations: int = Field(
        128, ge=0, description="Demonstrations whose mean score becomes 0; with none, the mean of the compared answers."
    )
    members: int = Field(
        1,
        ge=1,
        le=64,
        description="Linear scores that are averaged; more than one learn from judgments drawn with replacement, and "
        "their spread says how sure the model is.",
    )

    likelihood: bool = Field(
        True, description="Probe: read how likely each token was, and how much the prompt made it so."
    )
    contrast_prompts: int = Field(
        4, ge=0, le=64, description="Probe: other prompts that likelihoods are compared with."
    )
    newton_steps: int = Field(10, ge=1, description="Probe: Newton steps of each fit.")
    prior: float | None = Field(
        None, gt=0, description="Probe: size of the prior on scores; empty: chosen by five-fold cross-validation."
    )

    initialise: Literal["policy", "scratch"] = Field(
        "policy", description="Head: start from the policy's weights, or from new ones in the policy's shape."
    )
    epochs: int = Field(1, ge=1, description="Head: passes over the judgments.")
    batch_size: int = Field(16, ge=1, description="Head: judgments in one update.")
    learning_rate: float = Field(2e-5, ge=0, description="Head: peak learning rate, AdamW, linear to zero.")
    weight_decay: float = Field(0.0, ge=0, description="Head: weight decay.")
    warmup_share: float = Field(0.05, ge=0, le=1, description="Head: share of the updates in which the rate rises.")
    calibration_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Head: share of the train prompts kept back to fit the temperature on. 0: fitted on the last third "
        "of a single pass, each judgment scored before it is learnt from; after several passes there is none.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kind == "probe" and self.pooling == "last":
            raise ValueError("a probe reads the whole answer: pooling last belongs to kind head")
        if self.kind == "probe" and self.initialise == "scratch":
            raise ValueError("a probe of new weights learns nothing: initialise scratch belongs to kind head")
        if self.rankings == "plackett-luce" and self.label_smoothing:
            raise ValueError("label_smoothing turns pairs round, and rankings plackett-luce has none")
        return self


class PPOConfig(TrainConfig):
    """Proximal policy optimisation against a reward model, held near the reference by a KL penalty.

    A step is one iteration: sample a batch, score it, update on it. Rewards are in the reward model's unit, KL in nats.
    """

    checkpoint_every: int = Field(5, ge=1, description="Iterations between whole checkpoints.")
    log_every: int = Field(1, ge=1, description="Iterations between logged metrics.")

    iterations: int = Field(24, ge=1, description="Batches sampled and learnt from.")
    batch_size: int = Field(64, ge=2, description="Episodes (prompt and answer) in each iteration.")
    rollouts_per_prompt: int = Field(
        1, ge=1, description="Answers to each prompt of a batch; batch_size counts answers."
    )
    epochs: int = Field(2, ge=1, description="Passes over each batch.")
    minibatches: int = Field(4, ge=1, description="Updates in each pass; the batch is divided evenly among them.")
    micro_batch_size: int = Field(8, ge=1, description="Rows in one forward pass: memory and speed, never the result.")

    learning_rate: float = Field(2e-4, ge=0, description="Peak learning rate of the policy.")
    value_learning_rate: float = Field(5e-4, ge=0, description="Peak learning rate of the value function.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="AdamW throughout, or Muon on the hidden matrices and AdamW on the rest."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="How the learning rates fall.")
    schedule_floor: float = Field(0.1, ge=0, le=1, description="Share of the peak learning rate at the end.")
    warmup_iterations: int = Field(3, ge=0, description="Iterations over which the learning rates rise.")
    value_warmup: int = Field(1, ge=0, description="First iterations in which only the value function learns.")

    temperature: float = Field(1.0, gt=0, le=5, description="Of rollouts; logits are divided by it wherever read.")
    max_tokens: int = Field(96, ge=1, le=4096, description="Longest sampled answer, in tokens.")
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="Taken off the score of an answer cut at max_tokens, in reward units."
    )
    score_clip: float = Field(5.0, gt=0, description="Scores are clipped to this, up and down, in reward units.")
    ensemble_penalty: float = Field(
        0.0,
        ge=0,
        description="A reward model of several members scores their mean less so many of their standard deviations.",
    )

    beta: float = Field(0.1, ge=0, description="Price of KL from the reference: reward units per nat.")
    kl_control: Literal["fixed", "adaptive"] = Field("fixed", description="Whether beta follows kl_target.")
    kl_target: float = Field(6.0, gt=0, description="Wanted KL from the reference, nats per sequence (adaptive).")
    kl_gain: float = Field(
        0.5,
        gt=0,
        le=5,
        description="Adaptive: beta grows by gain x relative error, the error clipped to 0.2, each time.",
    )
    kl_budget: float | None = Field(
        30.0,
        gt=0,
        description="A KL above this, nats per sequence, ends the run with the last policy below it; empty: no limit.",
    )

    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Bias against variance of the advantages.")
    ratio_clip: float = Field(0.2, gt=0, lt=1, description="Probability ratios are clipped to 1 plus or minus this.")
    value_clip: float = Field(0.2, gt=0, description="Values move at most so far a batch, in reward units.")
    log_ratio_clamp: float = Field(10.0, gt=0, description="Log ratios are bounded before they are exponentiated.")
    approx_kl_stop: float | None = Field(
        0.1, gt=0, description="Policy updates on a batch stop past this KL from its sampler, nats per token."
    )

    ptx_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the loss on demonstrations in each policy update, as many of them as it has answers.",
    )

    sample_every: int = Field(4, ge=1, description="Iterations between answers to the fixed prompts.")
    sample_prompts: int = Field(8, ge=0, description="Fixed prompts whose answers are logged.")
    evaluation_prompts: int = Field(64, ge=1, description="Held-out prompts answered before and after training.")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by minibatches {self.minibatches}")
        if self.batch_size % self.rollouts_per_prompt:
            many = self.rollouts_per_prompt
            raise ValueError(f"batch_size {self.batch_size} is not divisible by rollouts_per_prompt {many}")
        return self


class DPOConfig(TrainConfig):
    """Direct preference optimisation, or IPO: the policy learns from the judgments themselves, without a reward model.

    A step is one update. Log-ratios are those of an answer under the policy and under the reference, in nats.
    """

    checkpoint_every: int = Field(10, ge=1, description="Updates between whole checkpoints.")
    log_every: int = Field(1, ge=1, description="Updates between logged metrics.")

    loss: Literal["dpo", "ipo"] = Field(
        "dpo", description="dpo: log-sigmoid of the margin; ipo: squared distance to a set margin, per token."
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="Reward for each nat of log-ratio: the smaller, the further the policy may go. ipo aims at a "
        "margin of 1 / (2 beta) nats a token. Empty: 0.1 for dpo, 1 for ipo.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of judgments taken to be slips of the hand (conservative DPO)."
    )
    ties: Literal["skip", "half"] = Field(
        "skip", description="Ties are left out, or count as half a win for each side. Both bad is a tie."
    )
    sft_weight: float = Field(
        0.0, ge=0, description="Weight of the preferred answers' mean negative log-likelihood a token, beside the loss."
    )

    epochs: int = Field(3, ge=1, description="Passes over the judgments.")
    batch_size: int = Field(32, ge=1, description="Judgments in one update.")
    micro_batch_size: int = Field(
        16, ge=1, description="Judgments whose answers are held at once: memory and speed, never the result."
    )
    max_length: int = Field(
        512, ge=8, description="Longest prompt and answer, in tokens; judgments with longer ones are left out, counted."
    )

    learning_rate: float = Field(1e-4, ge=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="AdamW throughout, or Muon on the hidden matrices and AdamW on the rest."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="How the learning rate falls.")
    schedule_floor: float = Field(0.0, ge=0, le=1, description="Share of the peak learning rate at the end.")
    warmup_share: float = Field(0.1, ge=0, le=1, description="Share of the updates in which the rate rises.")

    eval_every: int = Field(10, ge=1, description="Updates between looks at held-out judgments and at the KL.")
    evaluation_prompts: int = Field(64, ge=1, description="Held-out prompts answered at each look, for the KL.")
    sample_every: int = Field(10, ge=1, description="Updates between answers to the fixed prompts.")
    sample_prompts: int = Field(8, ge=0, description="Fixed prompts whose answers are logged.")
    max_tokens: int = Field(96, ge=1, le=4096, description="Longest answer to these prompts, in tokens.")


CONFIGS: dict[RunKind, type[TrainConfig]] = {
    RunKind.SFT: SFTConfig,
    RunKind.REWARD: RewardConfig,
    RunKind.PPO: PPOConfig,
    RunKind.DPO: DPOConfig,
}
