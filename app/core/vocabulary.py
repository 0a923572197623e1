"""The closed sets of words that the database, the training files and the pages share."""

from enum import StrEnum


class Role(StrEnum):
    """What a member may do in one project; each includes nothing of the others."""

    ANNOTATOR = "annotator"
    RESEARCHER = "researcher"
    ADMIN = "admin"


class Mode(StrEnum):
    """What a project asks of its annotators."""

    PAIR = "pair"
    RANK = "rank"
    CHAT = "chat"
    DEMONSTRATE = "demonstrate"


class Split(StrEnum):
    """Which side of the leak-free split a prompt stands on."""

    TRAIN = "train"
    HELDOUT = "heldout"


class Origin(StrEnum):
    """Where a completion came from."""

    SAMPLED = "sampled"
    IMPORTED = "imported"
    WRITTEN = "written"
    EDITED = "edited"


class DrawReason(StrEnum):
    """Why a comparison was drawn."""

    RANDOM = "random"
    GOLD = "gold"
    REPEAT = "repeat"
    CONTEST = "contest"
    UNCERTAIN = "uncertain"
    CHAT = "chat"


class ComparisonState(StrEnum):
    """`open` is served while slots are free; `retired` is no longer handed out; `imported` was judged elsewhere."""

    OPEN = "open"
    RETIRED = "retired"
    IMPORTED = "imported"


class AssignmentState(StrEnum):
    """The memory of one person's meeting with one comparison."""

    LEASED = "leased"
    JUDGED = "judged"
    SKIPPED = "skipped"
    EXPIRED = "expired"


class Verdict(StrEnum):
    """What the annotator pressed, in terms of the sides as shown."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"
    BOTH_BAD = "both_bad"


class Flag(StrEnum):
    """What an annotator may say of one answer, whichever is the better."""

    UNSAFE = "unsafe"
    WRONG = "wrong"
    OFF_TOPIC = "off_topic"
    IDENTITY_LEAK = "identity_leak"
    BROKEN = "broken"


class SkipReason(StrEnum):
    """Why somebody leaves a task to others."""

    UNSURE = "unsure"
    TOO_LONG = "too_long"
    NOT_MY_FIELD = "not_my_field"
    UNPLEASANT = "unpleasant"
    OTHER = "other"


class WritingState(StrEnum):
    """The memory of one person's meeting with one prompt that asks for an ideal answer."""

    LEASED = "leased"
    WRITTEN = "written"
    SKIPPED = "skipped"
    EXPIRED = "expired"


class ChatState(StrEnum):
    """`open` takes another turn; the others are final."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class FinishReason(StrEnum):
    """Why sampling ended: the end-of-sequence token, or the limit."""

    STOP = "stop"
    LENGTH = "length"


class DropCause(StrEnum):
    """Why a sampled pair was not shown to anybody."""

    IDENTICAL = "identical"
    EMPTY = "empty"
    BROKEN = "broken"


class RunKind(StrEnum):
    """What a run trains."""

    SFT = "sft"
    REWARD = "reward"
    PPO = "ppo"
    DPO = "dpo"


class RunStatus(StrEnum):
    """`paused` waits for a person (a full disk, say); the last three are final, but the last two can be resumed."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class CheckpointKind(StrEnum):
    """What a checkpoint holds."""

    POLICY = "policy"
    REWARD_MODEL = "reward_model"


LIVE_STATUSES = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED})
