"""Progress in a terminal, for someone who runs a directory by hand."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Terminal:
    """One bar with step, phase and time left on stderr; nothing at all where stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=None, left="")

    def show(self, step: int, total: int, phase: str, seconds_left: float | None) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._bar.start()
        self._bar.update(self._task, completed=step, total=total, description=phase, left=_left(seconds_left))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"
