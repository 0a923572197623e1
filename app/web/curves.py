"""The curves of each kind of run, each with one sentence that says what good looks like."""

from dataclasses import dataclass

from app.core.vocabulary import RunKind


@dataclass(frozen=True)
class Curve:
    """One plot: what it draws (a second metric is the held-out one), how to read it, its least range, the line to mind.

    Without a least range, a harmless wobble would fill the plot and look like a storm.
    """

    title: str
    metrics: tuple[str, ...]
    good: str
    low: float | None = None
    high: float | None = None
    limit: float | None = None


SFT = (
    Curve(
        "Loss",
        ("loss", "eval_loss"),
        "Falls fast, then flattens; where the held-out loss turns up, learning by heart begins.",
        0,
    ),
    Curve(
        "Token accuracy",
        ("mean_token_accuracy", "eval_mean_token_accuracy"),
        "Rises and flattens: the share of the demonstrations' tokens that the policy would have put first.",
        0,
        1,
    ),
)
REWARD = (
    Curve(
        "Loss",
        ("loss", "heldout_loss"),
        "Below the line at 0.69, the loss of a coin; about 0.5 is usual with people's labels.",
        0.3,
        0.75,
        0.693,
    ),
    Curve(
        "Accuracy",
        ("accuracy", "heldout_accuracy"),
        "Rises well above the line at 0.5, a coin; people themselves rarely agree more than 77 %.",
        0.4,
        1,
        0.5,
    ),
    Curve("Margin", ("margin",), "Grows slowly; a leap while accuracy stands still means overconfidence.", 0),
)
PPO = (
    Curve("Reward", ("objective/scores",), "Rises steadily; a leap is often the reward model being fooled."),
    Curve(
        "KL to the reference",
        ("objective/kl",),
        "Grows slowly, in nats per answer; at its budget the run ends and keeps the policy before.",
        0,
    ),
    Curve(
        "Reward less KL penalty",
        ("objective/rlhf_reward",),
        "What PPO maximises: rises, then flattens where reward and penalty balance.",
    ),
    Curve(
        "Entropy",
        ("policy/entropy_avg",),
        "Per token: falls a little; under a third of its start it repeats itself.",
        0,
    ),
    Curve(
        "Answer length",
        ("completions/mean_length",),
        "Stays within a third of its start, unless people like another length better.",
        0,
    ),
    Curve(
        "Cut-off answers",
        ("completions/truncated_share",),
        "Near 0; above the line the policy has forgotten how to stop.",
        0,
        0.25,
        0.2,
    ),
    Curve(
        "Clip fraction",
        ("policy/clipfrac_avg",),
        "Below the line: the share of tokens whose step was cut short.",
        0,
        0.35,
        0.3,
    ),
    Curve(
        "Approximate KL per update",
        ("policy/approxkl_avg",),
        "Below the line: how far one update moved the policy.",
        0,
        0.06,
        0.05,
    ),
    Curve("Value loss", ("loss/value_avg",), "Falls while the critic learns what to expect.", 0),
    Curve(
        "Explained variance",
        ("value/explained_variance",),
        "Above the line after the warm-up: the critic explains some of the reward.",
        -0.2,
        1,
        0,
    ),
)
DPO = (
    Curve(
        "Loss",
        ("loss", "eval_loss"),
        "DPO begins at the line and falls; where the held-out loss turns up, it learns these judgments by heart.",
        0.3,
        0.75,
        0.693,
    ),
    Curve(
        "Accuracy",
        ("rewards/accuracies", "eval_rewards/accuracies"),
        "Rises above the line at 0.5, a coin: how often the answer that people preferred gained more.",
        0.4,
        1,
        0.5,
    ),
    Curve(
        "Margin",
        ("rewards/margins", "eval_rewards/margins"),
        "Grows, and the held-out margin grows with it; alone, the one on its own judgments is no gain.",
        0,
    ),
    Curve(
        "Reward of preferred answers",
        ("rewards/chosen", "eval_rewards/chosen"),
        "Stays near 0 or rises; a steep fall means that even preferred answers are forgotten.",
        -0.5,
        0.5,
    ),
    Curve(
        "Reward of the others",
        ("rewards/rejected", "eval_rewards/rejected"),
        "Falls, and below the reward of preferred answers; far below, raise beta or take fewer passes.",
        -0.5,
        0.5,
    ),
    Curve(
        "KL to the reference",
        ("eval/kl",),
        "Grows to a few nats per answer; nothing but beta, the rate and the passes holds it there.",
        0,
    ),
    Curve(
        "Answer length",
        ("eval/length",),
        "Stays within a third of its start, unless people like another length better.",
        0,
    ),
)
CURVES = {RunKind.SFT: SFT, RunKind.REWARD: REWARD, RunKind.PPO: PPO, RunKind.DPO: DPO}


def curves_of(kind: RunKind) -> tuple[Curve, ...]:
    """What to draw for this kind of run."""
    return CURVES[kind]
