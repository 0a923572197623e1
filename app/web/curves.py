"""The curves of each kind of run, each with one sentence that says what good looks like."""

from dataclasses import dataclass

from app.core.vocabulary import RunKind


@dataclass(frozen=True)
class Curve:
    """One plot: the metrics drawn in it (the first one is named in the title's figure) and how to read it."""

    title: str
    metrics: tuple[str, ...]
    good: str


CURVES: dict[RunKind, tuple[Curve, ...]] = {
    RunKind.SFT: (
        Curve("Loss", ("loss",), "Falls fast, then flattens; a late rise means the learning rate is too high."),
        Curve(
            "Token accuracy",
            ("mean_token_accuracy",),
            "Rises and flattens: the share of the demonstrations' tokens that the policy would have put first.",
        ),
    ),
    RunKind.REWARD: (
        Curve(
            "Loss",
            ("loss",),
            "Starts near 0.69, the loss of a coin, and falls; a noisy floor near 0.5 is usual with people's labels.",
        ),
        Curve(
            "Accuracy",
            ("accuracy", "heldout_accuracy"),
            "Rises above 'longer wins'; people themselves rarely agree more than 77 %.",
        ),
        Curve("Margin", ("margin",), "Grows slowly; a leap while accuracy stands still means overconfidence."),
    ),
    RunKind.PPO: (
        Curve(
            "Reward",
            ("objective/scores",),
            "Rises, steadily and not by leaps; a leap is often the reward model being fooled.",
        ),
        Curve(
            "KL to the reference",
            ("objective/kl",),
            "Grows slowly, in nats per answer; over twice the target, the policy is leaving what it learnt.",
        ),
        Curve(
            "Reward less KL penalty",
            ("objective/rlhf_reward",),
            "What PPO maximises: rises, then flattens where reward and penalty balance.",
        ),
        Curve(
            "Entropy", ("objective/entropy",), "Falls a little; under a third of its start, the policy repeats itself."
        ),
        Curve(
            "Answer length",
            ("completions/mean_length",),
            "Stays within a third of its start unless people like the other length better.",
        ),
        Curve(
            "Cut-off answers",
            ("completions/truncated_share",),
            "Near 0; above 0.2 the policy has forgotten how to stop.",
        ),
        Curve("Clip fraction", ("policy/clipfrac_avg",), "Below 0.3: the share of tokens whose step was cut."),
        Curve(
            "Approximate KL per update", ("policy/approxkl_avg",), "Below 0.05: how far one update moved the policy."
        ),
        Curve("Value loss", ("loss/value_avg",), "Falls while the critic learns what to expect."),
        Curve(
            "Explained variance",
            ("value/explained_variance",),
            "Rises above 0 after the warm-up: the critic explains some of the reward.",
        ),
    ),
}


def curves_of(kind: RunKind) -> tuple[Curve, ...]:
    """What to draw for this kind of run."""
    return CURVES[kind]
