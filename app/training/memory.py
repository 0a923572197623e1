"""Whether a run fits into the machine's memory: said before anything is loaded, for a killed process says nothing."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from app.core.configs import TrainConfig
from app.training.failures import RunFailure
from app.training.run import Run

WEIGHT = 4
"""Bytes of a weight in fp32."""
SMALLER = "Set lora_rank, which trains a small adapter alone, take a smaller model or a machine with more memory."
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def require_memory(needs: Mapping[str, int], device: torch.device, mend: str, processes: int = 1) -> None:
    """RunFailure `memory` where what a process holds at least (bytes, by what holds them) is more than is free.

    `processes` of them share the memory of the machine; a GPU is one's own. Activations come on top: what passes may
    still fail.
    """
    free = free_memory(device)
    if device.type == "cpu":
        needs = {what: size * processes for what, size in needs.items()}
    wanted = sum(needs.values())
    if free is not None and wanted > free:
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in needs.items())
        raise RunFailure(
            "memory", f"The run needs at least {_gigabytes(wanted)} ({parts}); {_gigabytes(free)} is free.", mend
        )


def require_memory_for(run: Run[Any], needs: Mapping[str, int], mend: str) -> None:
    """The same for a run; no process goes on, and loads, while another still looks at what is free."""
    require_memory(needs, run.device, mend, run.world.local_size)
    run.world.gather(None)


def trained(parameters: int, *, moments: int = 2, copies: int = 0) -> int:
    """Bytes of weights that learn: themselves, a gradient, the optimizer's moments, and copies kept of them."""
    return parameters * WEIGHT * (2 + moments + copies)


def of_learner(folder: Path, config: TrainConfig, name: str = "policy") -> dict[str, int]:
    """What a model from this folder takes at least while it learns: with LoRA its weights alone."""
    count = stored_parameters(folder)
    if config.lora_rank:
        return {name: count * WEIGHT}
    # Both ways in which the kinds of run ask for Muon, which keeps one moment of a matrix.
    muon = getattr(config, "optimizer", "adamw") == "muon" or bool(getattr(config, "muon_learning_rate", None))
    return {f"{name} with gradient and optimizer": trained(count, moments=1 if muon else 2)}


def stored_parameters(folder: Path) -> int:
    """How many numbers the weights in a folder hold, read from the files' heads. RunFailure where one is damaged."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                count += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
        except SafetensorError as error:
            message = f"The weights in {folder.name}/{path.name} cannot be read: {error}."
            raise RunFailure("checkpoint", message, "Bring the file again: it is damaged or incomplete.") from error
    return count


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take on the device, swap and control group included; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not MEMINFO.exists():
        return None
    lines = (line.split() for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    free = sizes.get("MemAvailable", 0) + sizes.get("SwapFree", 0)
    limit, used = (CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text(encoding="utf-8").strip()).isdigit():
        free = min(free, int(most) - int(used.read_text(encoding="utf-8")))
    return free or None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
