"""From a conversation to token ids, by the tokenizer's own chat template.

A template is untrusted code: transformers renders it in jinja's immutable sandbox, and only processes that hold no
secrets load tokenizers. Text inside a message never becomes a control token, whatever it spells.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.core.errors import Invalid
from app.core.records import Message
from app.policy.deadline import DeadlineExceeded, deadline

TEMPLATE_S = 5.0
MEND = "Check the messages, or mend the chat template in the model's folder."


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the chat template's text: part of every sampled completion's provenance."""
    return hashlib.sha256(_template(tokenizer).encode()).hexdigest()


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    Invalid where there is no template, or it refuses the conversation, fails, or does not end within TEMPLATE_S.
    """
    _template(tokenizer)
    conversation: list[dict[str, Any]] = [dict(message) for message in messages]
    if not conversation:
        raise Invalid("A conversation needs at least one message.")
    try:
        with deadline(TEMPLATE_S):
            ids = _apply(tokenizer, conversation)
    except DeadlineExceeded:
        raise Invalid(f"The model's chat template did not end within {TEMPLATE_S:g} s.", MEND) from None
    except Exception as error:  # whatever a stranger's template can do wrong
        raise Invalid(f"The model's chat template refuses this conversation: {error}", MEND) from error
    return [int(i) for i in ids]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[int] | Invalid]:
    """`encode_prompt` of many conversations, several times as fast; in place of each refused one stands its refusal."""
    encoded: list[list[int] | Invalid] = []
    for start in range(0, len(conversations), _TOGETHER):
        some = conversations[start : start + _TOGETHER]
        try:
            _template(tokenizer)
            with deadline(TEMPLATE_S):
                encoded += _apply_all(tokenizer, [[dict(message) for message in each] for each in some])
        except Exception:  # one of them, or the template: each one's own answer says which
            encoded += [_encoded_or_refused(tokenizer, each) for each in some]
    return encoded


_TOGETHER = 256


def _apply_all(tokenizer: PreTrainedTokenizerBase, conversations: list[list[dict[str, Any]]]) -> list[list[int]]:
    if not all(conversations):
        raise Invalid("A conversation needs at least one message.")
    every: Any = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    return [[int(i) for i in ids] for ids in every]


def _encoded_or_refused(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int] | Invalid:
    try:
        return encode_prompt(tokenizer, messages)
    except Invalid as refusal:
        return refusal


def _apply(tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, Any]]) -> Any:
    try:
        return tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
        )
    except NotImplementedError:
        # A template without any special token: then none of the text may become one.
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return plain_ids(tokenizer, str(text))


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str) -> list[int]:
    """Token ids of an answer with the end-of-sequence token behind it."""
    assert tokenizer.eos_token_id is not None
    return [*plain_ids(tokenizer, completion), int(tokenizer.eos_token_id)]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of sampled ids, control tokens left out, white space at both ends removed."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text in which nothing is a control token."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return [int(i) for i in ids]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not isinstance(tokenizer.chat_template, str):
        raise Invalid(
            "The model's tokenizer has no chat template.",
            "Import the model with `--policy`: it is given a plain template.",
        )
    return tokenizer.chat_template
