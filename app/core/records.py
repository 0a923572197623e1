"""Records that cross the seam between store and training, and the layout of a run directory.

A run directory is all that a trainer sees:

    spec.json        what to run (RunSpec)
    data/*.jsonl     the snapshot's records, one JSON object a line
    metrics.jsonl    one flat object a logged step: {"step", "time", "phase", name: number, ...}
    progress.json    the heartbeat (Progress), replaced atomically
    samples.jsonl    answers to a fixed prompt set as training goes on: {"step", "prompt_id", "completion", "reward"?}
    tensorboard/     the same metrics and samples as TensorBoard's event files
    environment.json what it ran on, a list with an Attempt for each start
    log.txt          what the process printed
    cancel           its presence asks for a checkpoint and a stop
    checkpoints/     whole states to resume from, step-NNNNNN
    final/           the trained model
    report.json      of a reward model: RewardReport, the tables behind its metrics
    result.json      RunResult, written last
    error.json       RunError, when the run could not go on
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from app.core.vocabulary import RunKind, Split


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Record(BaseModel):
    """Frozen, and strict about its fields: a misspelt key is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptRecord(Record):
    """A prompt to answer."""

    prompt_id: str
    prompt: list[Message]
    split: Split


class DemonstrationRecord(Record):
    """A prompt with an ideal answer: what SFT learns from."""

    prompt_id: str
    prompt: list[Message]
    completion: str
    split: Split


class PreferenceRecord(Record):
    """One counted judgment: K completions in canonical order and the tiers a person sorted them into, best first.

    A tie is one tier of two. `strength` runs from 1 (barely) to 4 (much better) where the project asks for it.
    """

    judgment_id: str
    comparison_id: str
    prompt_id: str
    prompt: list[Message]
    completions: list[str]
    tiers: list[list[int]]
    strength: int | None = None
    both_bad: bool = False
    annotator: str
    split: Split


class RunSpec(Record):
    """What one run is: everything needed to repeat it from its directory."""

    schema_version: Literal[1] = 1
    run_id: str
    kind: RunKind
    seed: int
    config: dict[str, Any]
    policy: str | None = Field(
        default=None, description="folder of the policy to start from; for SFT null means a new starter model"
    )
    reference: str | None = Field(
        default=None, description="folder of the reference policy; null: the policy to start from"
    )
    reward_model: str | None = Field(default=None, description="folder of the reward model that PPO maximises")
    snapshot_sha256: str | None = None
    data_sha256: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each file under data/")


class Progress(Record):
    """The heartbeat of a training process."""

    step: int
    total: int
    phase: str
    seconds_left: float | None
    time: float


class Attempt(Record):
    """One start of a run's process, and what it ran on. What is not known is null."""

    time: float
    seed: int
    git_commit: str | None = Field(description="of the checkout that the product runs from")
    python: str
    packages: dict[str, str | None] = Field(description="versions by name")
    system: str
    release: str
    machine: str
    cpus: int | None
    cpu_capability: str = Field(description="the instructions that torch uses, on which last bits depend")
    threads: int
    processes: int = Field(1, description="how many trained the run together; last bits depend on it")
    device: str = Field(description="the name of the main process's GPU, or cpu")
    cuda: str | None = Field(description="the version that torch was built for")


class RunResult(Record):
    """How a run ended, with the metrics that describe what it made."""

    status: Literal["finished", "cancelled"]
    step: int
    metrics: dict[str, float | int | str | None]


class RewardSlice(Record):
    """Held-out accuracy where `value` holds of `slice`, with Wilson's 95 % interval.

    The trial is the comparison: its votes and its pairs are averaged first, since they stand or fall together. `pairs`
    counts them one by one. Ties count nowhere.

    slice        value
    all          all
    strength     1 to 4, or none
    annotator    the pseudonym of the record
    chosen       longer, shorter, equal: the preferred answer, in words
    length gap   within 10 %, over 10 %: of the longer answer's words
    agreement    single (one vote), unanimous, split: the votes on the comparison
    """

    slice: str
    value: str
    accuracy: float | None
    low: float
    high: float
    comparisons: int
    pairs: int


class ReliabilityBin(Record):
    """Held-out pairs of which the model is as sure as from `low` to `high`, and the share that it ordered rightly."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


class RewardReport(Record):
    """report.json of a reward model. It stays in the run directory: pseudonyms do not belong into a published model."""

    schema_version: Literal[1] = 1
    slices: list[RewardSlice]
    reliability: list[ReliabilityBin] = Field(description="confidence sigmoid(difference of raw scores)")
    reliability_calibrated: list[ReliabilityBin] | None = Field(
        description="confidence sigmoid(difference / temperature); null: no temperature was fitted"
    )


class RunError(Record):
    """Why a run could not go on, in words for the operator, and what mends it."""

    kind: Literal["data", "config", "memory", "disk", "checkpoint", "diverged", "internal"]
    message: str
    mend: str


class RunDir:
    """Names inside a run directory."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.spec = self.root / "spec.json"
        self.data = self.root / "data"
        self.prompts = self.data / "prompts.jsonl"
        self.demonstrations = self.data / "demonstrations.jsonl"
        self.preferences = self.data / "preferences.jsonl"
        self.metrics = self.root / "metrics.jsonl"
        self.progress = self.root / "progress.json"
        self.samples = self.root / "samples.jsonl"
        self.tensorboard = self.root / "tensorboard"
        self.environment = self.root / "environment.json"
        self.log = self.root / "log.txt"
        self.cancel = self.root / "cancel"
        self.checkpoints = self.root / "checkpoints"
        self.final = self.root / "final"
        self.report = self.root / "report.json"
        self.result = self.root / "result.json"
        self.error = self.root / "error.json"
