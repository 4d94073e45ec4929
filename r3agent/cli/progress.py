"""Progress of a verb on stderr: a line for each stage, with a bar on a terminal or periodic lines in a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from r3agent._util.console import printable
from r3agent._util.messages import count
from r3agent.evaluate.statistics import clustered
from r3agent.records.cost import Prices
from r3agent.records.summary import Tally
from r3agent.records.task_shares import TaskShares
from r3agent.train.report import progress_line, step_values


class ConsoleReporter:
    """Reporter that prints stages and progress; a context manager.

    A stage with a kind prints its estimated duration: that of the last stage of the kind, or the one given to `expect`.

    Args:
        every_s: seconds between two lines about the same stage without a terminal.
        prices: prices of the cost that is reported; default: none is.
    """

    def __init__(self, *, every_s: float = 10.0, prices: Prices | None = None) -> None:
        self._every_s, self._prices = every_s, prices
        self._console = Console(stderr=True, highlight=False)
        shown = TextColumn("{task.description}", markup=False)
        columns = (TextColumn("  "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), shown)
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._bar = self._progress.add_task("", total=None)
        self._seconds: dict[str, float] = {}
        self._kind = self._counts = self._unit = ""
        self._tally: Tally | None = None
        self._tokens_before = 0
        self._began = self._reported = time.monotonic()
        self._first: tuple[float, int] | None = None
        """Time and number of the first report of a bar, after which its rate counts."""

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
        self._tally = self._first = None
        self._progress.reset(self._bar, total=None, description="")
        about = f" (about {_rounded(self._seconds[kind])})" if kind in self._seconds else ""
        self._print(f"{text}{about}")

    def episodes(self, done: int, total: int) -> None:
        """Report how many episodes of the stage are done."""
        self._advance(done, total, "episodes", self._counts)

    def tally(self, tally: Tally) -> None:
        """Set the counts that the report of the episodes goes on with."""
        now = time.monotonic()
        if tally is not self._tally:  # of another collection in the same stage
            self._tally, self._tokens_before = tally, tally.tokens_sampled
            self._unit, self._first = "episodes", (now, tally.episodes)
        assert self._first is not None
        rate = (tally.tokens_sampled - self._tokens_before) / max(now - self._first[0], 1e-3)
        parts = [
            _first_try(tally.shares["first"]),
            f"{tally.groups_with_variance} of {tally.groups} groups with variance" if tally.groups else "",
            f"{rate:.0f} tokens/s",
            f"{tally.in_flight} in flight",
            f"cost {self._prices.text(tally.cost)}" if self._prices and tally.cost is not None else "",
            *(f"{n} {kind}" for kind, n in tally.errors.items()),
        ]
        self._counts = "".join(f", {part}" for part in parts if part)

    def steps(self, done: int, total: int) -> None:
        """Report how many optimizer steps of the stage are done."""
        self._advance(done, total, "steps")

    def training(self, stage: str, values: Mapping[str, Any]) -> None:
        """Report a stage of a training, or one of its steps."""
        if stage == "step":
            self._advance(values["step"], values["steps"], "steps", f", {step_values(values)}")
        else:
            self.stage(progress_line(stage, values))

    def servers(self, done: int, total: int) -> None:
        """Report how many servers have the weights of a deploy."""
        if done == 0:
            self.stage("loading the weights, and comparing their fingerprint")
        self._advance(done, total, "servers")

    def verdicts(self, done: int, total: int) -> None:
        """Report how many verdicts of the stage are done."""
        self._advance(done, total, "verdicts")

    def _advance(self, done: int, total: int, unit: str, more: str = "") -> None:
        now = time.monotonic()
        if self._first is None or unit != self._unit or done < self._first[1]:
            self._unit, self._first = unit, (now, done)
        text = f"{unit}{self._pace(now, done, total)}{more}"
        self._progress.start()
        self._progress.update(self._bar, completed=done, total=total, description=printable(text))
        if done == total:
            self._progress.stop()
        elif self._progress.disable and now - self._reported >= self._every_s:
            self._reported = now
            self._print(f"  {done} of {total} {text}")

    def _pace(self, now: float, done: int, total: int) -> str:
        """Return the rate since the first report and the time that is left at it; empty before there is one."""
        began, before = self._first or (now, done)
        if done <= before or now <= began:
            return ""
        rate = (done - before) / (now - began)
        left = f", {timedelta(seconds=round((total - done) / rate))} left" if done < total else ""
        return f", {rate:.3g}/s{left}"

    def _print(self, text: str) -> None:
        self._console.print(Text.assemble(("r3agent", "dim"), f" {printable(text)}"), soft_wrap=True)


def _first_try(shares: TaskShares) -> str:
    """Render the mean over tasks with its interval, as several samples of a task are not independent.

    Episodes that pass at once end before those that reflect, so that the mean is too high at first.
    """
    if not shares.judged:
        return ""
    found = clustered(shares.mean, shares.variance, len(shares), shares.judged)
    interval = f"{found.low:.0%} to {found.high:.0%}, {count(found.n_tasks, 'task')}"
    return f"first try of ended episodes {found.rate:.0%} ({interval})"


def _rounded(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds / 60:.0f} min"
    return f"{max(5, 5 * round(seconds / 5))} s"
