"""From a conversation to token ids, by the tokenizer's own chat template.

A template is untrusted code: transformers renders it in jinja's immutable sandbox, and only processes that hold no
secrets load tokenizers. Text inside a message never becomes a control token, whatever it spells.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from app.core.errors import Invalid
from app.core.records import Message


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 of the chat template's text: part of every sampled completion's provenance."""
    return hashlib.sha256(_template(tokenizer).encode()).hexdigest()


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins. Invalid where the template refuses it."""
    _template(tokenizer)
    conversation: list[dict[str, Any]] = [dict(message) for message in messages]
    if not conversation:
        raise Invalid("A conversation needs at least one message.")
    try:
        try:
            ids: Any = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
            )
        except NotImplementedError:
            # A template without any special token: then none of the text may become one.
            text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            ids = plain_ids(tokenizer, str(text))
    except TemplateError as error:
        raise Invalid(f"The model's chat template refuses this conversation: {error}") from error
    return [int(i) for i in ids]


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
