"""What one row of an imported file means. Pure: a row of JSON in, a record out, or words about what is wrong with it.

Read here: plain and conversational `prompt`, `completion`, `chosen`, `rejected` as TRL names them; the transcripts of
Anthropic's hh-rlhf; the votes of PandaLM's test set; a bare JSON string as a prompt.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from app.core.records import Message

Role = Literal["system", "user", "assistant"]

# Notes: oddities that are taken as they are, and counted.
JOINED = "neighbouring turns of one speaker were joined"
EMPTY = "answers are empty"
IDENTICAL = "pairs have two identical answers"
NOT_TEXT = "answers were a JSON true or false and were taken as that word"
TIES = "votes are ties"


class Malformed(ValueError):
    """A row that cannot be read; the message says why, and quotes nothing of it but field names."""


class LeftOut(ValueError):
    """A row that was read and makes no comparison; the message says why."""


@dataclass(frozen=True)
class Vote:
    """What one annotator said: canonical positions in tiers, best first."""

    annotator: str
    tiers: list[list[int]]


@dataclass
class Preference:
    """Two answers to a prompt and the votes on them. `notes` may hold one oddity several times."""

    prompt: list[Message]
    answers: list[str]
    votes: list[Vote]
    notes: list[str] = field(default_factory=list)


def prompt_of(row: Any) -> list[Message]:
    """A prompt: a bare string, {"prompt": text or messages} or {"messages": [...]}, ending with the user."""
    if isinstance(row, str):
        return _one_turn(row, "the prompt")
    value = _object(row).get("prompt", row.get("messages"))
    if value is None:
        raise Malformed("it has no field 'prompt'")
    return _prompt(value)


def demonstration_of(row: Any) -> tuple[list[Message], str]:
    """A prompt and its ideal answer: {"prompt", "completion"} or {"messages": [..., the answer]}."""
    row = _object(row)
    if "messages" in row:
        *before, last = _messages(row["messages"])
        if last["role"] != "assistant" or not before:
            raise Malformed("its messages do not end with an answer of the assistant")
        return _ends_with_user(before), last["content"]
    if "prompt" not in row or "completion" not in row:
        raise Malformed("it has no fields 'prompt' and 'completion'")
    answer = _answer(row["completion"], "completion")
    if not answer.strip():
        raise Malformed("its completion is empty")
    return _prompt(row["prompt"]), answer


def preference_of(row: Any) -> Preference:
    """A compared pair in any of the formats that are read. Raises Malformed or LeftOut."""
    row = _object(row)
    if "annotator1" in row and "response1" in row:
        return _pandalm(row)
    if "chosen" not in row or "rejected" not in row:
        raise Malformed("it has no fields 'chosen' and 'rejected'")
    notes: list[str] = []
    if "prompt" in row:
        prompt = _prompt(row["prompt"])
        chosen, rejected = (_answer(row[name], name) for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _shared_prompt(row["chosen"], row["rejected"], notes)
    notes += [EMPTY] * sum(not answer.strip() for answer in (chosen, rejected))
    if chosen == rejected:
        notes.append(IDENTICAL)
    annotator = row.get("annotator", "")
    if not isinstance(annotator, str) or len(annotator) > 200:
        raise Malformed("its annotator is not a short text")
    # Canonical order must not say which one was chosen.
    answers = sorted((chosen, rejected))
    better = answers.index(chosen)
    return Preference(prompt, answers, [Vote(annotator, [[better], [1 - better]])], notes)


def _pandalm(row: Mapping[str, Any]) -> Preference:
    """PandaLM's test set: two responses, three annotators, 1 and 2 name the better one, 0 is a tie."""
    notes: list[str] = []
    answers = []
    for name in ("response1", "response2"):
        value = row.get(name)
        if isinstance(value, bool):
            value = "true" if value else "false"
            notes.append(NOT_TEXT)
        if not isinstance(value, str):
            raise Malformed(f"its field '{name}' is not a text")
        if not value.strip():
            notes.append(EMPTY)
        answers.append(value)
    if answers[0] == answers[1]:
        notes.append(IDENTICAL)
    votes = []
    for name in sorted(key for key in row if re.fullmatch(r"annotator\d+", key)):
        code = row[name]
        if code not in (0, 1, 2) or isinstance(code, bool):
            raise Malformed(f"its field '{name}' is not 0, 1 or 2")
        if code == 0:
            notes.append(TIES)
        votes.append(Vote(name, [[0, 1]] if code == 0 else [[code - 1], [2 - code]]))
    question = "\n\n".join(part for part in (row.get("instruction"), row.get("input")) if part)
    return Preference(_one_turn(question, "the instruction"), answers, votes, notes)


def _shared_prompt(chosen: Any, rejected: Any, notes: list[str]) -> tuple[list[Message], str, str]:
    """The common beginning of two whole conversations, and their last answers."""
    one, other = _conversation(chosen, "chosen"), _conversation(rejected, "rejected")
    if one[-1]["role"] != "assistant" or other[-1]["role"] != "assistant":
        raise Malformed("a conversation does not end with an answer of the assistant")
    if one[:-1] != other[:-1]:
        raise LeftOut("the two conversations differ before the last answer")
    one, other = _join(one, notes), _join(other, [])
    return _ends_with_user(one[:-1]), one[-1]["content"], other[-1]["content"]


def _conversation(value: Any, name: str) -> list[Message]:
    """Messages, or a transcript whose turns begin with an empty line and 'Human:' or 'Assistant:'."""
    if not isinstance(value, str):
        return _messages(value)
    before, *turns = re.split(r"\n\n(Human|Assistant):", value)
    if before.strip() or not turns:
        raise Malformed(f"its field '{name}' is no transcript, and there is no prompt")
    speakers: list[Role] = ["user" if speaker == "Human" else "assistant" for speaker in turns[::2]]
    return [Message(role=role, content=words.strip()) for role, words in zip(speakers, turns[1::2], strict=True)]


def _join(messages: list[Message], notes: list[str]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            whole = f"{joined[-1]['content']}\n\n{message['content']}"
            joined[-1] = Message(role=message["role"], content=whole)
            notes.append(JOINED)
        else:
            joined.append(message)
    return joined


def _object(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Malformed("it is not a JSON object")
    return row


def _prompt(value: Any) -> list[Message]:
    return _one_turn(value, "the prompt") if isinstance(value, str) else _ends_with_user(_messages(value))


def _one_turn(words: Any, what: str) -> list[Message]:
    if not isinstance(words, str) or not words.strip():
        raise Malformed(f"{what} is empty")
    return [Message(role="user", content=words)]


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise Malformed("a conversation is not a list of messages")
    messages = []
    for one in value:
        if (
            not isinstance(one, dict)
            or one.get("role") not in get_args(Role)
            or not isinstance(one.get("content"), str)
        ):
            raise Malformed("a message is not a role (system, user or assistant) and a content")
        messages.append(Message(role=one["role"], content=one["content"]))
    return messages


def _ends_with_user(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] != "user":
        raise Malformed("its prompt does not end with a message of the user")
    return messages


def _answer(value: Any, name: str) -> str:
    """A text, or a list with the assistant's one message."""
    if isinstance(value, str):
        return value
    messages = _messages(value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Malformed(f"its field '{name}' is not one message of the assistant")
    return messages[0]["content"]
