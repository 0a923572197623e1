"""What the forms may send: each field is named and typed, and anything else is refused."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from app.core.configs import CONFIGS
from app.core.errors import Invalid
from app.core.vocabulary import Flag, Role, RunKind, SkipReason, Verdict

LARGEST_MS = 24 * 3600 * 1000


class FormModel(BaseModel):
    """A form: frozen, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _ids(value: Any) -> Any:
    """Comma-separated ids, or the field given several times."""
    parts = value if isinstance(value, list) else [value]
    return [part for text in parts for part in str(text).split(",") if part]


def _positions(value: Any) -> Any:
    """`0,1` as [0, 1]."""
    parts = value if isinstance(value, list) else [value]
    return [part.strip() for text in parts for part in str(text).split(",")]


def _tiers(value: Any) -> Any:
    """`2|0,1` as [[2], [0, 1]]: best first, ties side by side."""
    given = value[0] if isinstance(value, list) and len(value) == 1 else value
    return [tier.split(",") for tier in str(given).split("|")] if given else None


def _empty(value: Any) -> Any:
    """A field that was left empty says nothing."""
    return value or None


Ids = Annotated[list[uuid.UUID], BeforeValidator(_ids), Field(max_length=64)]
Positions = Annotated[list[int], BeforeValidator(_positions), Field(min_length=2, max_length=9)]
Tiers = Annotated[list[list[int]] | None, BeforeValidator(_tiers), Field(max_length=9)]
Milliseconds = Annotated[int, Field(ge=0, le=LARGEST_MS)]


class SignInForm(FormModel):
    """A name and a password."""

    username: str = Field(max_length=200)
    password: str = Field(max_length=1000)
    next: str = Field("/", max_length=500)


class AccountForm(FormModel):
    """A new account's name and password; both empty where somebody signed in joins as who they are."""

    username: str = Field("", max_length=200)
    password: str = Field("", max_length=1000)


class JudgmentForm(FormModel):
    """One judgment as made, under a key from the browser, and the comparisons that its page has already.

    Flags and ratings are JSON by canonical position. Without scripts a button can say only one thing: `choice` is a
    side with its strength, as `left.4`. `back` is where such a page goes on.
    """

    comparison_id: uuid.UUID
    key: uuid.UUID
    verdict: Annotated[Verdict | None, BeforeValidator(_empty)] = None
    tiers: Tiers = None
    order: Positions
    strength: Annotated[int | None, BeforeValidator(_empty), Field(ge=1, le=4)] = None
    flags: Json[dict[int, list[Flag]]] = Field({}, max_length=9)
    ratings: Json[dict[int, int]] = Field({}, max_length=9)
    rationale: str = ""
    ideal: str = ""
    edited_from: Annotated[int | None, BeforeValidator(lambda value: None if value == "" else value)] = None
    first_key_ms: Milliseconds = 0
    active_ms: Milliseconds = 0
    guideline_version: int | None = Field(None, ge=1)
    held: Ids = []
    back: Literal["", "history"] = ""

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, given: Any) -> Any:
        """`choice` as the verdict and the strength that it stands for."""
        if not isinstance(given, dict) or "choice" not in given:
            return given
        side, _, strength = str(given["choice"]).partition(".")
        return {name: value for name, value in given.items() if name != "choice"} | {
            "verdict": side,
            "strength": strength,
        }


class SkipForm(FormModel):
    """The comparison to leave to somebody else."""

    comparison_id: uuid.UUID
    reason: Annotated[SkipReason | None, BeforeValidator(_empty)] = None
    held: Ids = []
    # The page without scripts has one form for all its buttons.
    key: uuid.UUID | None = None
    order: Positions | None = None
    back: Literal[""] = ""


class HeldForm(FormModel):
    """The comparisons that a page has already."""

    held: Ids = []
    comparison_id: uuid.UUID | None = None
    key: uuid.UUID | None = None
    order: Positions | None = None
    back: Literal[""] = ""


class DraftForm(FormModel):
    """A draft as a JSON object; the store says how large it may be."""

    body: str = Field(max_length=256 * 1024)


def _none(value: Any) -> Any:
    """An empty field as nothing."""
    return None if value == "" else value


class WriteForm(FormModel):
    """An ideal answer. How long it may be is said by the store, so that the page can show it again."""

    prompt_id: uuid.UUID
    key: uuid.UUID
    text: str = ""
    edited_from_id: Annotated[uuid.UUID | None, BeforeValidator(_none)] = None
    active_ms: Annotated[Milliseconds | None, BeforeValidator(_none)] = None
    guideline_version: int | None = Field(None, ge=1)
    held: Ids = []


class SkipPromptForm(FormModel):
    """The prompt to leave to somebody else, and why."""

    prompt_id: uuid.UUID
    reason: Annotated[SkipReason | None, BeforeValidator(_none)] = None
    held: Ids = []


class GuidelinesForm(FormModel):
    """New guidelines, and the version that they were edited from."""

    body: str = ""
    base: int = Field(ge=1)


class ReadForm(FormModel):
    """The version of the guidelines that was read, and where to go on."""

    version: int = Field(ge=1)
    next: str = Field("", max_length=500)


class TurnForm(FormModel):
    """What somebody says in a chat."""

    message: str = Field(min_length=1, max_length=20_000)

    @field_validator("message")
    @classmethod
    def _is_text(cls, message: str) -> str:
        if "\0" in message:
            raise ValueError("a character in it cannot be stored")
        return message.replace("\r\n", "\n")


class PickForm(FormModel):
    """Which of a turn's two answers goes on, under a key from the browser."""

    comparison_id: uuid.UUID
    key: uuid.UUID
    verdict: Verdict
    order: Positions
    strength: int | None = Field(None, ge=1, le=4)
    first_key_ms: Milliseconds = 0
    active_ms: Milliseconds = 0
    guideline_version: int | None = Field(None, ge=1)


class TurnOnlyForm(FormModel):
    """The turn that is meant."""

    comparison_id: uuid.UUID


class ChatForm(FormModel):
    """The chat that is meant."""

    chat_id: uuid.UUID


class InviteForm(FormModel):
    """The role of whoever opens the link, for how long it is good, and a note for admins."""

    role: Role
    days: Literal["1", "7", "30"] = "7"
    note: str = Field("", max_length=200)


class RoleForm(FormModel):
    """Somebody's new role."""

    role: Role


class PasswordForm(FormModel):
    """A new password, and the one until now."""

    current: str = Field(max_length=1000)
    password: str = Field(max_length=1000)


class ResetForm(FormModel):
    """A new password by a link."""

    password: str = Field(max_length=1000)
    # Password managers want to see whose it is.
    username: str = Field("", max_length=200)


class BrowserForm(FormModel):
    """The browser to sign out; empty: all but this one."""

    browser: str = Field("", pattern="^([0-9a-f]{64})?$")


class EraseForm(FormModel):
    """The name, typed again by whoever erases it."""

    name: str = Field("", max_length=200)


def words_for(errors: Sequence[Any]) -> str:
    """The first thing that is wrong with a form, without quoting what was typed."""
    first = errors[0]
    if not first["loc"]:  # each field may be, but not all of them together
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{message[:1].upper()}{message[1:]}."
    name = str(first["loc"][-1]).replace("_", " ")
    if first["type"] == "extra_forbidden":
        return f"The field ‘{name}’ is not part of this form."
    if first["type"] == "missing":
        return f"The field ‘{name}’ is missing."
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{name[:1].upper()}{name[1:]}: {message}."


class TrainForm(FormModel):
    """Both runs with their defaults."""

    seed: int = Field(0, ge=0, lt=2**31)


class StartForm(BaseModel):
    """One run. What is named here is the same for all kinds; `set.NAME` is the field NAME of its configuration.

    The prefix keeps the two apart: a configuration may well have a field `kind` of its own.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: RunKind
    seed: int = Field(0, ge=0, lt=2**31)
    policy_id: Annotated[uuid.UUID | None, BeforeValidator(lambda value: value or None)] = None
    reward_model_id: Annotated[uuid.UUID | None, BeforeValidator(lambda value: value or None)] = None


PREFIX = "set."


@dataclass(frozen=True)
class Setting:
    """One field of a run's configuration as an input."""

    name: str
    description: str
    default: Any
    kind: str
    choices: tuple[str, ...] = ()


# What somebody new should see first; whatever else a configuration has is folded away, not hidden.
BASIC = {
    "starter",
    "epochs",
    "max_steps",
    "iterations",
    "batch_size",
    "learning_rate",
    "kind",
    "loss",
    "ties",
    "beta",
    "kl_control",
    "kl_target",
}


def settings_of(kind: RunKind) -> tuple[list[Setting], list[Setting]]:
    """The fields of a kind's configuration: those to show, and the advanced ones."""
    fields = CONFIGS[kind].model_fields
    found = [setting_of(name, field) for name, field in fields.items()]
    basic = [one for one in found if one.name in BASIC]
    return basic, [one for one in found if one.name not in BASIC]


def setting_of(name: str, field: FieldInfo) -> Setting:
    """A field as an input, by its type."""
    default = field.get_default(call_default_factory=True)
    arms = get_args(field.annotation)
    literal = next((arm for arm in (field.annotation, *arms) if get_origin(arm) is Literal), None)
    if literal is not None:
        kind, choices = "choice", tuple(str(choice) for choice in get_args(literal))
    elif field.annotation is bool:
        kind, choices = "choice", ("true", "false")
        default = str(default).lower()
    else:
        numeric = {int, float} & {field.annotation, *arms}
        kind, choices = ("number" if numeric else "text"), ()
    return Setting(name, field.description or "", default, kind, choices)


def config_of(kind: RunKind, given: Mapping[str, Any]) -> dict[str, Any]:
    """A kind's configuration from form fields; an empty field keeps its default. Invalid where a value cannot be."""
    unknown = [name for name in given if not name.startswith(PREFIX)]
    if unknown:
        raise Invalid(f"The field ‘{unknown[0]}’ is not part of this form.", "No run was started.")
    filled = {name.removeprefix(PREFIX): value for name, value in given.items() if value != ""}
    try:
        config = CONFIGS[kind].model_validate(filled)
    except ValidationError as error:
        raise Invalid(words_for(error.errors()), "No run was started. Mend the field and start again.") from None
    return config.model_dump(mode="json", include=set(filled))
