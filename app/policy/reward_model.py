"""Reward models: how good an answer to a prompt is, as people's comparisons taught it.

Two kinds, told apart by `kind` in reward.json:

`head`   a transformer with one linear score on a pooled hidden state. Pooled at the last token it is exactly
         `AutoModelForSequenceClassification` (num_labels 1) and loads plainly with the same raw score.
`probe`  a frozen copy of the language model whose answers were compared, read everywhere: hidden states over all of the
         answer, and how likely each token was; on top, a few linear scores that are averaged. For small models and few
         judgments, where the last token alone says little.

Everywhere: rows are right-padded, `answer` marks the answer's tokens (its end of sequence included), the raw score is
in log-odds of Bradley and Terry's model, and the reward is (raw - offset) x scale.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from app.core.errors import Invalid
from app.core.folders import MANIFEST, verify_folder
from app.policy.checkpoint import check_files, from_folder, load_policy
from app.policy.hidden import hidden_at
from app.policy.lora import ADAPTER, heard, merged, save_adapter
from app.policy.reading import Reader

SETTINGS = "reward.json"
WEIGHTS = "reward.safetensors"
MEMBERS = "members."


class Calibration(BaseModel):
    """How far a difference of scores may be believed: P(i is preferred to j) = sigmoid((raw_i - raw_j) / temperature).

    Fitted on train judgments that the scores had not seen; held-out ones only measure it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(gt=0)
    fitted_on: Literal["cross-validation", "single pass", "kept back"] = Field(
        description="predictions of the other folds' fits; the last third of a single pass, before it was learnt from; "
        "train prompts kept out of training"
    )
    pairs: int = Field(description="preferences that it was fitted on")
    ece: float | None = Field(None, description="expected calibration error on held-out pairs at temperature 1")
    ece_calibrated: float | None = Field(None, description="the same at this temperature")


class RewardSettings(BaseModel):
    """reward.json: what a score means and how to compute it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    kind: Literal["head", "probe"] = "head"
    pooling: Literal["last", "mean", "sum"] = Field("last", description="over the answer's tokens")
    likelihood: bool = Field(False, description="probe: reads how likely the answer was, too")
    layers: list[int] = Field(default_factory=list, description="probe: hidden states that are read, 0 the embedding")
    contrast: list[list[int]] = Field(default_factory=list, description="probe: token ids of the other prompts")
    members: int = Field(1, ge=1, description="linear scores that are averaged")
    offset: float = Field(0.0, description="raw score of an average demonstration, whose reward is 0")
    scale: float = Field(1.0, gt=0, description="reward units for each unit of the raw score")
    clip: float = Field(5.0, gt=0, description="largest reward, up and down, that `score` gives")
    tie_threshold: float | None = Field(None, description="Rao and Kupper's eta, in log-odds; null: ties were halved")
    calibration: Calibration | None = Field(None, description="null: no temperature was fitted")


class RewardModel(nn.Module):
    """What both kinds share. `members` gives raw scores, `score` rewards, `values_at` a start for a critic."""

    def __init__(self, settings: RewardSettings, pad_id: int) -> None:
        super().__init__()
        self.settings = settings
        self.pad_id = pad_id

    @property
    def offset(self) -> float:
        """The raw score whose reward is 0."""
        return self.settings.offset

    @property
    def scale(self) -> float:
        """Reward units for each unit of the raw score."""
        return self.settings.scale

    def members(self, ids: Tensor, attention: Tensor, answer: Tensor) -> Tensor:
        """Each member's raw scores: ids, attention, answer [b, L] -> [M, b], fp32.

        Their spread says how sure the model is; a single member, M = 1, has none.
        """
        raise NotImplementedError

    def forward(self, ids: Tensor, attention: Tensor, answer: Tensor) -> Tensor:
        """Raw scores, the mean of the members. ids, attention, answer [b, L] -> [b], fp32."""
        return self.members(ids, attention, answer).mean(0)

    def values_at(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """A raw score expected from what stands up to N places of ids [b, L]: row, position [N] -> [N], fp32.

        Differentiable.
        """
        raise NotImplementedError

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        batch_size: int = 32,
        pessimism: float = 0.0,
    ) -> Tensor:
        """Rewards of completions (token ids, end of sequence included), [B], clipped to +-settings.clip.

        `pessimism` k gives mean - k std of the members' raw scores, after Coste et al. (2024): an answer of which they
        are unsure is worth less. A single member is never unsure.
        """
        # Rows of like length are read together, so that little is padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
        raw = torch.zeros(len(order))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            packed = pack([prompts[i] for i in rows], [completions[i] for i in rows], self.pad_id)
            members = self.members(*packed)
            mean = members.mean(0)
            raw[rows] = (mean - pessimism * members.std(0, correction=0) if pessimism else mean).cpu()
        return ((raw - self.offset) * self.scale).clamp(-self.settings.clip, self.settings.clip)

    def write(self, folder: Path) -> None:
        """Put the weights into an existing folder."""
        raise NotImplementedError


class HeadReward(RewardModel):
    """A sequence classifier with one label; the score is computed in fp32 whatever the body's precision.

    Several members are rows of one linear map on the same body. On disk the classifier's own score is their mean, which
    is linear, too: who loads the folder plainly gets the mean. The members lie beside, in reward.safetensors.
    """

    def __init__(self, settings: RewardSettings, body: PreTrainedModel) -> None:
        super().__init__(settings, _pad_id(body))
        self.body = body
        head = getattr(body, "score", None)
        if not isinstance(head, nn.Linear):
            raise Invalid(
                f"{type(body).__name__} has no single linear score.", "Use a decoder such as Llama, Qwen or GPT-2."
            )
        if settings.members > 1:
            head = nn.Linear(head.in_features, settings.members, head.bias is not None, head.weight.device)
            body.score = head
        self.head: nn.Linear = head.float()

    def _scores_at(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """What each member says at N places, [M, N]."""
        scores: Tensor = self.head(hidden_at(self.body, ids, row, position).float())
        return scores.T

    def values_at(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        return self._scores_at(ids, row, position).mean(0)

    def members(self, ids: Tensor, attention: Tensor, answer: Tensor) -> Tensor:
        rows = torch.arange(len(ids), device=ids.device)
        if self.settings.pooling == "last":
            return self._scores_at(ids, rows, attention.sum(-1).long() - 1)
        row, position = answer.nonzero(as_tuple=True)
        scores = self._scores_at(ids, row, position)
        total = scores.new_zeros(len(scores), len(ids)).index_add(1, row, scores)
        return total / answer.sum(-1).clamp_min(1) if self.settings.pooling == "mean" else total

    def write(self, folder: Path) -> None:
        state = merged(self.body)
        if self.settings.members > 1:
            parts = {name: part.detach().clone() for name, part in self.head.state_dict().items()}
            save_file({f"{MEMBERS}{name}": part.contiguous() for name, part in parts.items()}, folder / WEIGHTS)
            state |= {f"score.{name}": part.mean(0, keepdim=True) for name, part in parts.items()}
        self.body.save_pretrained(folder, state_dict=state)
        if (adapter := heard(self.body)) is not None:
            save_adapter(folder / ADAPTER, self.body, adapter)


class ProbeReward(RewardModel):
    """Linear scores of what a frozen language model shows of an answer (app.policy.reading says what that is).

    weight [members, features]; value [hidden] and value_bias predict the raw score from the last hidden state of a
    prefix: what a critic starts from.
    """

    weight: Tensor
    value: Tensor
    value_bias: Tensor

    def __init__(self, settings: RewardSettings, language_model: PreTrainedModel) -> None:
        super().__init__(settings, _pad_id(language_model))
        if settings.pooling == "last":
            raise ValueError("a probe pools over the answer: mean or sum")
        self.language_model = language_model.eval().requires_grad_(False)
        self.reader = Reader(settings.layers, settings.contrast, settings.pooling, settings.likelihood, self.pad_id)
        hidden = language_model.config.get_text_config().hidden_size
        self.weight = nn.Parameter(torch.zeros(settings.members, self.reader.width(hidden)), requires_grad=False)
        self.value = nn.Parameter(torch.zeros(hidden), requires_grad=False)
        self.value_bias = nn.Parameter(torch.zeros(()), requires_grad=False)

    def members(self, ids: Tensor, attention: Tensor, answer: Tensor) -> Tensor:
        return self.weight @ self.reader.features(self.language_model, ids, answer).T

    def values_at(self, ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
        return hidden_at(self.language_model, ids, row, position).float() @ self.value + self.value_bias

    def write(self, folder: Path) -> None:
        self.language_model.save_pretrained(folder)
        tensors = {"weight": self.weight, "value": self.value, "value_bias": self.value_bias}
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)


def pack(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded rows of prompt and completion: ids, attention, answer, each [b, L]."""
    rows = [torch.tensor([*p, *c]) for p, c in zip(prompts, completions, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    column = torch.arange(ids.shape[1])
    starts = torch.tensor([len(p) for p in prompts]).unsqueeze(1)
    ends = torch.tensor([len(r) for r in rows]).unsqueeze(1)
    return ids, (column < ends).long(), (column >= starts) & (column < ends)


def save_reward_model(folder: Path, model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a reward model's files into an existing folder (`app.core.folders.write_folder` makes that whole)."""
    model.write(folder)
    tokenizer.save_pretrained(folder)
    (folder / SETTINGS).write_text(json.dumps(model.settings.model_dump(), indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(model.settings), encoding="utf-8")


_MEND = "Name the folder of a trained reward model, with all its files."


def load_reward_model(folder: Path) -> RewardModel:
    """The reward model in a folder, in evaluation mode. Invalid for a folder that is none; its manifest must agree."""
    check_files(folder)
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    try:
        settings = RewardSettings.model_validate_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise Invalid(f"{folder.name} is not a reward model: {SETTINGS} is missing or unreadable.", _MEND) from error
    if settings.kind == "head":
        body, missing = from_folder(AutoModelForSequenceClassification, folder, num_labels=1, dtype=torch.float32)
        if missing:
            raise Invalid(f"{folder.name} is not a reward model: {missing[0]} is missing from its weights.", _MEND)
        head = HeadReward(settings, body)
        if settings.members > 1:
            _fill(folder, dict(head.head.named_parameters()), MEMBERS)
        return head.eval()
    model = ProbeReward(settings, load_policy(folder).model)
    _fill(folder, {name: getattr(model, name) for name in ("weight", "value", "value_bias")})
    return model.eval()


def _fill(folder: Path, parameters: Mapping[str, Tensor], prefix: str = "") -> None:
    """Put the tensors of reward.safetensors into parameters of their names. Invalid where one does not fit."""
    tensors = load_file(folder / WEIGHTS) if (folder / WEIGHTS).exists() else {}
    for name, parameter in parameters.items():
        found = tensors.get(prefix + name)
        if found is None or found.shape != parameter.shape:
            raise Invalid(
                f"{folder.name}/{WEIGHTS} does not fit its {SETTINGS}: {prefix}{name} is missing or of another shape.",
                _MEND,
            )
        parameter.data.copy_(found)


def load_reward_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a reward model was trained with. Invalid where there is none that can be loaded."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        mend = "Save the tokenizer of the policy that it was trained on into the same folder."
        raise Invalid(f"{folder.name} has no tokenizer that can be loaded.", mend) from error


def _pad_id(model: PreTrainedModel) -> int:
    pad = model.config.pad_token_id
    if pad is None:
        raise Invalid("A reward model needs a padding token.", "Set pad_token_id in its config.json.")
    return int(pad)


_PLAIN = """It loads plainly, with the same raw score on the last token:

    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
"""
_PLAIN_MEAN = """It loads plainly, and its raw score on the last token is then the mean of its {members} members:

    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)

**The members do not load plainly.** Each one's score, and their spread, which says how sure the model is, are given by

    from app.policy.reward_model import load_reward_model
    load_reward_model(folder).members(ids, attention, answer)
"""
_NOT_PLAIN = """**It does not load plainly.** `AutoModelForSequenceClassification` knows nothing of its {reason}; use

    from app.policy.reward_model import load_reward_model
    load_reward_model(folder).score(prompts, completions)
"""


def _card(settings: RewardSettings) -> str:
    plain = settings.kind == "head" and settings.pooling == "last"
    reason = "likelihood features and averaged scores" if settings.kind == "probe" else f"{settings.pooling} pooling"
    loading = _NOT_PLAIN.format(reason=reason)
    if plain:
        loading = _PLAIN if settings.members == 1 else _PLAIN_MEAN.format(members=settings.members)
    sure = settings.calibration
    odds = f"Differences of raw scores, divided by {sure.temperature:.6g}, are log-odds. " if sure else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, pairwright]
---
# Reward model ({settings.kind}, pooled by {settings.pooling})

Trained on people's comparisons of answers by Bradley and Terry's model.

{loading}
The reward is `(raw - {settings.offset:.6g}) * {settings.scale:.6g}`, clipped to +-{settings.clip:g};
an average demonstration has reward 0. {odds}reward.json holds these numbers.
"""
