"""Policies on disk: plain Hugging Face folders of safetensors, checked before anything in them is used.

Never read: pickled weights, remote code (`auto_map`), adapters. A folder that this module wrote also loads by plain
`AutoModelForCausalLM.from_pretrained`; that of a policy trained with LoRA holds the merged policy, and in `adapter/`
what `PeftModel.from_pretrained` puts onto the base it was trained from.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from app.core.errors import Invalid
from app.core.folders import MANIFEST, verify_folder, write_folder
from app.policy.chat import encode_prompt
from app.policy.lora import save_model

UNLOADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises where files are damaged, missing or of a kind that it does not know."""

logger = logging.getLogger("pairwright.policy")
disable_progress_bar()  # logs are read by people and by machines

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- {'user': 'User: ', 'assistant': 'Assistant: ', 'system': ''}[message['role']] + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
"""Given to an imported model that has no chat template of its own: a base model, made to be fine-tuned."""

_READABLE = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Policy(NamedTuple):
    """A causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_policy(folder: Path, dtype: torch.dtype = torch.float32) -> Policy:
    """The policy in a folder, in evaluation mode on the CPU. Invalid, with what mends it, where it cannot serve.

    Where the folder has a manifest, its hashes must agree, else DamagedFolder.
    """
    check_files(folder)
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    tokenizer = _load_tokenizer(folder)
    check_tokenizer(tokenizer, folder.name)
    model = _load_model(folder, dtype)
    if len(tokenizer) > embeddings_of(model).shape[0]:
        raise Invalid(
            f"The tokenizer of {folder.name} has {len(tokenizer)} tokens, more than its model knows.",
            "Put the tokenizer that the model was trained with beside it.",
        )
    return Policy(model, tokenizer)


def save_policy(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a policy's files into an existing folder; `app.core.folders.write_folder` makes that whole and hashed."""
    save_model(folder, model)
    tokenizer.save_pretrained(folder)


def import_policy(source: str, folder: Path) -> dict[str, str]:
    """Bring any causal language model, a hub id or a folder, into the form that `load_policy` takes.

    What can be mended is: a missing padding token, or one that is also the end of sequence, becomes a token of its own;
    a model without a chat template gets PLAIN_TEMPLATE. Returns the manifest, file name -> SHA-256.
    """
    origin = Path(source).expanduser()
    if not origin.is_dir():
        origin = _download(source)
    check_files(origin, needs_tokenizer_json=False)
    tokenizer = _load_tokenizer(origin)
    model = _load_model(origin, "auto")
    if tokenizer.eos_token_id is None:
        raise Invalid(f"The tokenizer of {source} has no end-of-sequence token.", "Set eos_token in its configuration.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        logger.info("%s was given a padding token of its own", source)
    if len(tokenizer) > embeddings_of(model).shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = PLAIN_TEMPLATE
        logger.warning("%s has no chat template: it was given a plain one", source)
    check_tokenizer(tokenizer, source)
    return write_folder(folder, lambda partial: save_policy(partial, model, tokenizer))


def embeddings_of(model: PreTrainedModel) -> Tensor:
    """The input embedding, [tokens, hidden]; its device is where ids must be."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's and those of the generation config, in ascending order."""
    more = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])}
    return tuple(sorted(i for i in ids if i is not None))


def check_files(folder: Path, needs_tokenizer_json: bool = True) -> None:
    """Invalid unless the folder's files can be loaded without running any code of theirs."""
    name = folder.name
    if not folder.is_dir():
        raise Invalid(f"There is no model folder {name}.", "Give a folder that holds a model in Hugging Face's layout.")
    for config in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _json(folder / config, required=config == "config.json"):
            raise Invalid(
                f"{name}/{config} asks for code of its own (auto_map), which is never run.",
                "Use a model whose architecture transformers knows.",
            )
    if (folder / "adapter_config.json").exists():
        raise Invalid(
            f"{name} is an adapter, not a whole model.",
            "Merge it into its base model first; the folder around a policy's own adapter/ holds the merged policy.",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(path.suffix in _PICKLED for path in folder.iterdir())
        raise Invalid(
            f"{name} has no weights in safetensors" + ("; pickled weights are never loaded." if pickled else "."),
            "Save the model again with safe_serialization." if pickled else "Check that the download is complete.",
        )
    index = _json(folder / "model.safetensors.index.json", required=False).get("weight_map", {})
    if not all(isinstance(shard, str) and (folder / shard).parent == folder for shard in index.values()) or not all(
        shard.endswith(".safetensors") for shard in index.values()
    ):
        raise Invalid(f"The index of {name} names weights that are not safetensors in the same folder.")
    if not (folder / "tokenizer.json").exists() and (
        needs_tokenizer_json or not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model"))
    ):
        raise Invalid(f"{name} has no tokenizer (tokenizer.json).", "Save the model's tokenizer into the same folder.")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Invalid unless the tokenizer can end, pad and chat; the template is tried out."""
    mend = "Import the model with `--policy`: what is missing is added."
    if tokenizer.eos_token_id is None:
        raise Invalid(f"The tokenizer of {name} has no end-of-sequence token.", "Set eos_token in its configuration.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise Invalid(f"The tokenizer of {name} pads with its end-of-sequence token, or cannot pad.", mend)
    if not isinstance(tokenizer.chat_template, str):
        raise Invalid(f"The tokenizer of {name} has no chat template.", mend)
    encode_prompt(tokenizer, [{"role": "user", "content": "Hello"}])


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        mend = "Save the model's tokenizer into the same folder again."
        raise Invalid(f"The tokenizer in {folder.name} cannot be loaded: {_first_line(error)}", mend) from error


def unloadable(folder: Path, error: Exception) -> Invalid:
    """What to say of a folder from which transformers could not load a model."""
    mend = "Bring its files again: one is damaged, missing, or of an architecture that transformers does not know."
    return Invalid(f"The model in {folder.name} cannot be loaded: {_first_line(error)}", mend)


def _load_model(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    model, missing = from_folder(AutoModelForCausalLM, folder, dtype=dtype)
    if missing:
        raise Invalid(f"The weights in {folder.name} are incomplete: {missing[0]} is missing.", "Bring all files.")
    return model.eval()


def from_folder(kind: Any, folder: Path, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model by one of transformers' automatic classes, from safetensors only and without code of its own.

    Beside it stand the weights that the folder lacks, which transformers makes up. Invalid where nothing can be loaded.
    """
    try:
        answer: Any = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        )
    except UNLOADABLE as error:
        raise unloadable(folder, error) from error
    return answer[0], sorted(answer[1]["missing_keys"])


def _download(source: str) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=_READABLE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Invalid(
            f"{source} is neither a folder here nor a model that can be downloaded: {_first_line(error)}",
            "Check the name and the connection, or give a folder.",
        ) from error


def _json(path: Path, required: bool) -> Mapping[str, Any]:
    if not path.exists() and not required:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        mend = "Give the folder of a whole model, with its config.json."
        raise Invalid(f"{path.parent.name}/{path.name} cannot be read: {_first_line(error)}", mend) from error
    return values if isinstance(values, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
