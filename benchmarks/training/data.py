"""A scene's rows in the order in which our trainers visit them: TRL gets them too, and tokens are counted on them."""

from pathlib import Path
from typing import NamedTuple, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.core.records import DemonstrationRecord, Message, PreferenceRecord, PromptRecord, Record
from app.core.vocabulary import Split
from app.policy.chat import encode_completion, encode_prompts
from app.training.order import Shuffler
from app.training.sft_data import Example, encode, plan

MAX_LENGTH = 2048
R = TypeVar("R", bound=Record)


class Pair(NamedTuple):
    """A judged pair, as messages and as token ids; answers end with the end of sequence."""

    messages: list[Message]
    better_text: str
    worse_text: str
    prompt: list[int]
    better: list[int]
    worse: list[int]

    @property
    def tokens(self) -> int:
        """Tokens read: the prompt stands before both answers."""
        return 2 * len(self.prompt) + len(self.better) + len(self.worse)


class Prompt(NamedTuple):
    """A prompt to answer."""

    prompt_id: str
    ids: list[int]


def tokenizer_of(scene: Path) -> PreTrainedTokenizerBase:
    """The scene's tokenizer."""
    return AutoTokenizer.from_pretrained(scene / "policy", local_files_only=True)


def read(path: Path, kind: type[R]) -> list[R]:
    """Records of a JSON lines file."""
    return [kind.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def demonstrations(scene: Path, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Encoded demonstrations of one side."""
    records = read(scene / "demonstrations.jsonl", DemonstrationRecord)
    return encode([r for r in records if r.split is split], tokenizer, MAX_LENGTH)[0]


def sft_batches(scene: Path, seed: int, steps: int, batch: int) -> list[list[Example]]:
    """The demonstrations of each update, as `app.training.sft` takes them."""
    examples = demonstrations(scene, Split.TRAIN, tokenizer_of(scene))
    order = plan(examples, seed=seed, batch_size=batch, epochs=1, curriculum=0, curriculum_rows=0.1, most=steps)
    batches = [[examples[i] for i in rows] for rows in order]
    if len(batches) != steps or any(len(rows) != batch for rows in batches):
        raise ValueError("the scene has too few demonstrations for equal batches")
    return batches


def pairs(scene: Path, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Judged pairs of one side, in the file's order."""
    records = [r for r in read(scene / "preferences.jsonl", PreferenceRecord) if r.split is split]
    found = []
    for record, prompt in zip(records, encode_prompts(tokenizer, [r.prompt for r in records]), strict=True):
        assert isinstance(prompt, list)
        better, worse = (record.completions[tier[0]] for tier in record.tiers)
        ids = [encode_completion(tokenizer, text) for text in (better, worse)]
        found.append(Pair(record.prompt, better, worse, prompt, *ids))
    return found


def pair_batches(scene: Path, seed: int, steps: int, batch: int) -> list[list[Pair]]:
    """The judgments of each update, as `app.training.reward_head` takes them: one shuffled pass."""
    every = pairs(scene, Split.TRAIN, tokenizer_of(scene))
    if len(every) != steps * batch:
        raise ValueError(f"{len(every)} judgments are not {steps} updates of {batch}")
    order = Shuffler(len(every), seed)
    return [[every[i] for i in order.take(batch)] for _ in range(steps)]


def prompts(scene: Path, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Prompts of one side, in the file's order."""
    records = [r for r in read(scene / "prompts.jsonl", PromptRecord) if r.split is split]
    found = []
    for record, ids in zip(records, encode_prompts(tokenizer, [r.prompt for r in records]), strict=True):
        assert isinstance(ids, list)
        found.append(Prompt(record.prompt_id, ids))
    return found


def prompt_batches(scene: Path, seed: int, steps: int, batch: int) -> list[list[Prompt]]:
    """The prompts of each iteration, as `app.training.ppo` takes them."""
    every = prompts(scene, Split.TRAIN, tokenizer_of(scene))
    order = Shuffler(len(every), seed)
    return [[every[i] for i in order.take(batch)] for _ in range(steps)]
