"""Folders that are whole or not there: written aside, hashed, synced, then renamed into place."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

MANIFEST = "manifest.json"


class DamagedFolder(Exception):
    """A folder whose files are not those of its manifest; the message names the first that differs."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a directory's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file by its whole new text in one rename; `durable` waits for the disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        if durable:
            sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_folder(target: Path, fill: Callable[[Path], None]) -> dict[str, str]:
    """Make `target` out of what `fill` writes into an empty folder: a reader sees all of it or nothing.

    The manifest of SHA-256 sums is written last, everything is synced, then one rename puts the folder in place; a
    folder of that name is replaced. Returns the manifest, file name (relative, POSIX) -> hex sum. Whatever goes wrong,
    nothing half-written stays.
    """
    partial = target.with_name(f".{target.name}.partial")
    retired = target.with_name(f".{target.name}.retired")
    for leftover in (partial, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        fill(partial)
        files = _sums(partial)
        (partial / MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in [*partial.rglob("*"), partial]:
            sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rename(retired)
    partial.rename(target)
    sync(target.parent)
    shutil.rmtree(retired, ignore_errors=True)
    return files


def verify_folder(folder: Path) -> Mapping[str, str]:
    """The manifest of an intact folder; DamagedFolder where it is missing, unreadable or a sum differs."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if sha256_of(folder / name) != expected:
                raise DamagedFolder(f"{folder.name}/{name} is not what was written: its SHA-256 differs")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedFolder(f"{folder.name} is incomplete: {error}") from error
    return dict(files)


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
