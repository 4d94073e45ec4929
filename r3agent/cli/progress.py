"""What is told while a verb works."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Watcher:
    """Tells stages on stderr, and how far they are where that is a terminal; a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not sys.stderr.isatty())
        self._bar = self._progress.add_task("episodes", total=None)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._progress.stop()
        self._console.print(f"[dim]r3agent[/dim] {text}", soft_wrap=True)

    def episodes(self, done: int, total: int) -> None:
        self._progress.start()
        self._progress.update(self._bar, completed=done, total=total)
        if done == total:
            self._progress.stop()
