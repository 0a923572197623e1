"""What a child process may know: our own processes everything, training and sampling no secret."""

import os
from collections.abc import Mapping
from pathlib import Path

import app

# Where programs and libraries lie, how text is encoded, which devices may be used: nothing that opens a door.
HARMLESS = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TERM",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "HF_HOME",
        "XDG_CACHE_HOME",
    }
)
HARMLESS_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "NVIDIA_", "PYTHONHASHSEED", "PYTHONDONTWRITE")


def of_our_own() -> dict[str, str]:
    """The environment of a web or worker process: ours, with `app` importable from wherever it stands."""
    return {**os.environ, "PYTHONPATH": _import_path(), "PYTHONUNBUFFERED": "1"}


def without_secrets(threads: int, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a training or sampling process: known harmless names only, and its share of the cores.

    It loads models that strangers made; there is nothing in it worth stealing. `threads` 0 leaves the choice to torch.
    """
    source = os.environ if source is None else source
    kept = {name: value for name, value in source.items() if name in HARMLESS or name.startswith(HARMLESS_PREFIXES)}
    kept |= {
        "PYTHONPATH": _import_path(),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # Threads that wait for each other spin for a moment, then sleep: docs/decisions/sharing-two-cores.md has the
        # figures for sleeping at once and for spinning on.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "30000",
    }
    if threads:
        kept |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return kept


def _import_path() -> str:
    (package,) = app.__path__
    return str(Path(package).parent)
