"""Judgments that cannot teach a score, refused before anything is computed: each with its reason and its mend."""

import logging
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from app.core.configs import RewardConfig
from app.core.pairing import pairs_of
from app.core.records import PreferenceRecord
from app.core.vocabulary import Split
from app.training.failures import RunFailure

logger = logging.getLogger("pairwright.training")
_SUSPICIOUS = 20


def check_records(records: Sequence[PreferenceRecord]) -> None:
    """RunFailure `data` for judgments that do not rank their answers, or whose prompt is on both sides of the split."""
    for record in records:
        places = sorted(place for tier in record.tiers for place in tier)
        if places != list(range(len(record.completions))) or len(places) < 2:
            message = f"Judgment {record.judgment_id} does not rank each of its {len(record.completions)} answers once."
            raise RunFailure("data", message, "Correct its tiers, or leave it out of data/preferences.jsonl.")
    train = [r for r in records if r.split is Split.TRAIN]
    held = [r for r in records if r.split is Split.HELDOUT]
    both = {repr(r.prompt) for r in train} & {repr(r.prompt) for r in held}
    if both:
        ids = min(r.judgment_id for r in held if repr(r.prompt) in both)
        message = f"{len(both)} prompts are both learnt from and held out (judgment {ids} is on one of them)."
        raise RunFailure("data", message, "Split by prompt: the same question always on the same side.")


def check_judgments(records: Sequence[PreferenceRecord], config: RewardConfig) -> None:
    """RunFailure `data` for judgments that are malformed, leak over the split, or say nothing on one of its sides."""
    check_records(records)
    train = [r for r in records if r.split is Split.TRAIN]
    held = [r for r in records if r.split is Split.HELDOUT]
    _check_something_to_learn(train, config)
    if config.require_heldout and not held:
        message = "No judgment is on a held-out prompt, so nothing could be said of how good the model is."
        raise RunFailure("data", message, "Judge pairs of held-out prompts, or set require_heldout=false.")
    if held and not any(pairs_of(r.tiers) for r in held):
        logger.warning("all %d held-out judgments are ties: there will be no held-out accuracy", len(held))


def _check_something_to_learn(train: Sequence[PreferenceRecord], config: RewardConfig) -> None:
    votes: Counter[tuple[str, str, str]] = Counter()
    first = strict = 0
    for record in train:
        for better, worse in pairs_of(record.tiers):
            won, lost = record.completions[better], record.completions[worse]
            votes[repr(record.prompt), min(won, lost), max(won, lost)] += (won < lost) - (won > lost)
            strict, first = strict + 1, first + (better < worse)
    if not strict:
        message = "Every judgment on a train prompt is a tie." if train else "No judgment is on a train prompt."
        raise RunFailure("data", f"{message} No score follows from it.", "Judge more pairs.")
    if not any(votes.values()):
        message = "No preference is left to learn: on every train pair the votes cancel, or both answers read the same."
        raise RunFailure("data", message, "Judge more pairs, or leave contradictory judgments out.")
    if strict >= _SUSPICIOUS and first in (0, strict):
        logger.warning(
            "all %d preferences are for the answer that stands %s in its record: right where files put the chosen one "
            "there, else a sign that who was chosen got lost",
            strict,
            "first" if first else "last",
        )
    if config.strength_margin and not any(r.strength for r in train):
        message = "strength_margin is set, and no judgment on a train prompt says how strong it is."
        raise RunFailure("config", message, "Ask for strengths in the project, or set strength_margin=0.")


def usable(
    records: Sequence[PreferenceRecord], lengths: Sequence[Sequence[int]], room: int, config: RewardConfig
) -> list[bool]:
    """Which judgments can be read. `lengths` are their answers' tokens, `room` is how many of those fit.

    RunFailure `data` for the first that cannot, unless bad_rows drops them; then their number is logged.
    """
    reasons = [_unreadable(r, some, room) for r, some in zip(records, lengths, strict=True)]
    bad = [(r, why) for r, why in zip(records, reasons, strict=True) if why]
    if bad and config.bad_rows == "refuse":
        (record, why), longest = bad[0], max(max(some) for some in lengths)
        mend = "Mend them, or set bad_rows=drop to learn from the others."
        if longest > room == config.max_length - 1:  # where the policy's context is the limit, no setting helps
            mend = (
                f"The longest answer has {longest} tokens: raise max_length, at best to {longest + 1} and more. {mend}"
            )
        message = f"{len(bad)} of {len(records)} judgments cannot be read. The first is {record.judgment_id}: {why}."
        raise RunFailure("data", message, mend)
    if bad:
        logger.warning(
            "%d of %d judgments are left out; %s: %s", len(bad), len(records), bad[0][0].judgment_id, bad[0][1]
        )
    return [why is None for why in reasons]


def _unreadable(record: PreferenceRecord, lengths: Sequence[int], room: int) -> str | None:
    if not any(message["content"].strip() for message in record.prompt):
        return "its prompt is empty"
    for number, (text, length) in enumerate(zip(record.completions, lengths, strict=True), 1):
        if not text.strip():
            return f"its answer {number} is empty"
        if length > room:
            return f"its answer {number} has {length} tokens, and {room} fit"
    return None


def check_scores(values: Tensor, what: str) -> None:
    """RunFailure `data` where what the policy says of answers, before it is trained, is not all finite numbers."""
    bad = int((~values.isfinite()).sum())
    if bad:
        message = f"{bad} of {values.numel()} {what} are not finite numbers: the policy's weights are damaged."
        raise RunFailure("data", message, "Start from another policy, or make this one again.")
