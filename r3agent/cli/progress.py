"""Progress of a verb on stderr: a line for each stage, with a bar on a terminal or periodic lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from r3agent._util.console import printable
from r3agent.evaluate.statistics import wilson
from r3agent.records.summary import Tally


class ConsoleReporter:
    """Reporter that prints stages and progress; a context manager.

    A stage with a kind prints its estimated duration: that of the last stage of the kind, or the one given to `expect`.

    Args:
        every_s: seconds between two lines about the same stage without a terminal.
    """

    def __init__(self, *, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=self._console, transient=True, disable=not sys.stderr.isatty()
        )
        self._bar = self._progress.add_task("", total=None)
        self._seconds: dict[str, float] = {}
        self._kind = self._counts = ""
        self._tokens_before = 0
        self._began = self._reported = time.monotonic()

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set the estimated duration of the first stage of each kind, in seconds."""
        self._seconds |= seconds

    def stage(self, text: str, kind: str = "") -> None:
        """Report that a stage begins, or the result of one."""
        self._progress.stop()
        now = time.monotonic()
        if self._kind:
            self._seconds[self._kind] = now - self._began
        self._kind, self._counts, self._began, self._reported = kind, "", now, now
        about = f" (about {_rounded(self._seconds[kind])})" if kind in self._seconds else ""
        self._print(f"{text}{about}")

    def episodes(self, done: int, total: int) -> None:
        """Report how many episodes of the stage are done."""
        self._advance(done, total, f"episodes{self._counts}")

    def tally(self, tally: Tally) -> None:
        """Set the counts that the report of the episodes goes on with."""
        if not self._counts:
            self._tokens_before = tally.tokens_sampled
        rate = (tally.tokens_sampled - self._tokens_before) / max(time.monotonic() - self._began, 1e-3)
        passed, judged = tally.first_tries
        parts = [
            f"first try {passed / judged:.0%} ({_interval(passed, judged)})" if judged else "",
            f"{tally.groups_with_variance} of {tally.groups} groups with variance" if tally.groups else "",
            f"{rate:.0f} tokens/s",
            f"{tally.in_flight} in flight",
            f"cost {tally.cost:.4g}" if tally.cost is not None else "",
            *(f"{count} {kind}" for kind, count in tally.errors.items()),
        ]
        self._counts = "".join(f", {part}" for part in parts if part)

    def steps(self, done: int, total: int) -> None:
        """Report how many optimizer steps of the stage are done."""
        self._advance(done, total, "steps")

    def verdicts(self, done: int, total: int) -> None:
        """Report how many verdicts of the stage are done."""
        self._advance(done, total, "verdicts")

    def _advance(self, done: int, total: int, unit: str) -> None:
        self._progress.start()
        self._progress.update(self._bar, completed=done, total=total, description=unit)
        if done == total:
            self._progress.stop()
        elif self._progress.disable and time.monotonic() - self._reported >= self._every_s:
            self._reported = time.monotonic()
            self._print(f"  {done} of {total} {unit}")

    def _print(self, text: str) -> None:
        self._console.print(Text.assemble(("r3agent", "dim"), f" {printable(text)}"), soft_wrap=True)


def _interval(passed: int, judged: int) -> str:
    low, high = wilson(passed, judged)
    return f"{low:.0%} to {high:.0%}"


def _rounded(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds / 60:.0f} min"
    return f"{max(5, 5 * round(seconds / 5))} s"
