"""Whole-state checkpoints: a tree of tensors and plain values as safetensors and JSON, never pickle."""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.core.folders import DamagedFolder, verify_folder, write_folder

TENSOR = "$tensor"
Tree = Any  # str-keyed dicts and lists of tensors, numbers, strings, booleans and None


@dataclass(frozen=True)
class State:
    """What a checkpoint holds: the number of finished steps and the tree that the training loop saved with it."""

    step: int
    tree: dict[str, Tree]


@dataclass(frozen=True)
class Restored:
    """The newest whole state, None where there is none, and what was said about each damaged one passed over."""

    state: State | None
    damaged: list[str]


def save_state(folder: Path, state: State, keep: int = 2) -> None:
    """Write `folder/step-NNNNNN` whole or not at all, then drop all but the newest `keep`."""
    tensors: dict[str, Tensor] = {}
    skeleton = _pack({"loop": state.tree, "rng": rng_state()}, "", tensors, {})
    text = json.dumps({"step": state.step, "threads": torch.get_num_threads(), **skeleton})

    def fill(partial: Path) -> None:
        save_file(tensors, partial / "state.safetensors")
        (partial / "state.json").write_text(text, encoding="utf-8")

    write_folder(folder / f"step-{state.step:06d}", fill)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def load_newest_state(folder: Path) -> Restored:
    """The newest checkpoint whose hashes agree, with the random generators set as they were.

    Damaged ones are passed over, named in the answer, and removed so that they never count as the newest again.
    """
    damaged: list[str] = []
    for checkpoint in _newest_first(folder):
        try:
            verify_folder(checkpoint)
        except DamagedFolder as error:
            damaged.append(str(error))
            shutil.rmtree(checkpoint)
            continue
        return Restored(_load(checkpoint), damaged)
    return Restored(None, damaged)


def load_state_of(folder: Path, step: int) -> State:
    """The checkpoint of a step, as `load_newest_state` gives it. DamagedFolder where it is missing or not whole."""
    checkpoint = folder / f"step-{step:06d}"
    verify_folder(checkpoint)
    return _load(checkpoint)


def _load(checkpoint: Path) -> State:
    values = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    tree = _unpack(values, load_file(checkpoint / "state.safetensors"))
    set_rng_state(tree["rng"])
    return State(step=tree["step"], tree=tree["loop"])


def rng_state() -> dict[str, Tree]:
    """The state of every generator that a step may draw from: torch (CPU and this process's GPU), Python, NumPy."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "torch": torch.get_rng_state(),
        # Of this process's own GPU, if it uses one: to ask another would take memory on it.
        "cuda": [torch.cuda.get_rng_state().cpu()] if torch.cuda.is_initialized() else [],
        "python": [version, list(words), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": numpy["state"]["pos"],
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        },
    }


def set_rng_state(state: Mapping[str, Tree]) -> None:
    """Put every generator back to a state taken by `rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == 1:
        torch.cuda.set_rng_state(state["cuda"][0])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    inner = {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]}
    np.random.set_state(
        {"bit_generator": "MT19937", "state": inner, "has_gauss": numpy["has_gauss"], "gauss": numpy["gauss"]}
    )


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _pack(tree: Tree, name: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Tree:
    """JSON with each tensor replaced by its name; tied tensors are stored once and come back as one."""
    if isinstance(tree, Tensor):
        tensor = tree.detach()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key not in seen:
            seen[key] = name
            # A view of larger storage would drag the whole of it along.
            whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
            tensors[name] = tensor if whole else tensor.contiguous().clone()
        return {TENSOR: seen[key]}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError(f"the keys of {name or 'a state'} are not all strings")
        return {key: _pack(value, f"{name}/{key}".lstrip("/"), tensors, seen) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_pack(value, f"{name}/{i}", tensors, seen) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{name} is a {type(tree).__name__}: only tensors, numbers, strings, lists and dicts are saved")


def _unpack(tree: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(tree, dict):
        if tree.keys() == {TENSOR}:
            return tensors[tree[TENSOR]]
        return {key: _unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    return tree
