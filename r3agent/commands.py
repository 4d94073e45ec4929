"""What each verb does: options in, an outcome out. Nothing here prints or exits."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r3agent.config import load_config, parse_override, to_toml
from r3agent.errors import ConfigError, RecordError
from r3agent.evaluate import render
from r3agent.run import CONFIG_FILE, Run
from r3agent.store import load
from r3agent.trajectory import Span, Trajectory


@dataclass(frozen=True)
class Outcome:
    """What a verb has to say, for machines and for people."""

    data: Mapping[str, Any]
    text: str
    ok: bool = True


class Watcher:
    """Tells a person at a terminal, on stderr, what is going on; silent otherwise."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, quiet=not sys.stderr.isatty(), highlight=False)
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._bar = self._progress.add_task("episodes", total=None)

    def stage(self, text: str) -> None:
        self._progress.stop()
        self._console.print(f"[dim]r3agent[/dim] {text}")

    def episodes(self, done: int, total: int) -> None:
        self._progress.start()
        self._progress.update(self._bar, completed=done, total=total)
        if done == total:
            self._progress.stop()
