"""Branches of recorded episodes: a failed first try that is stored, continued with a group of reflections.

An application records one reflection for each failure, a group of one, from which GRPO cannot learn. A branch begins
with the recorded try, sends its exact conversation, and samples the group. It is a trajectory of its own, with its
parent's id; the recorded spans in it are context, whichever version sampled them.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from r3agent._util.aio import gather_all
from r3agent._util.checked import AtLeastOne, checked
from r3agent.episodes.collect import collect
from r3agent.errors import ConfigError, VerifierError
from r3agent.policy import Policy
from r3agent.recording.redaction import NOTE as REDACTED
from r3agent.records.branching import branch_of, failed_try
from r3agent.records.summary import CollectSummary
from r3agent.records.trajectory import HELD_OUT, SPLIT, Record, Trajectory, each_trajectory, origins
from r3agent.verifiers import Verifier, judge
from r3agent.verifiers.interface import CutOff, takes_environment

REMEDIES = {
    "unlabelled": "no verdict says that they failed: `r3agent label STORE --from FILE.csv` adds what people said, and "
    "`r3agent reverify STORE --verifier NAME` what a verifier says",
    "redacted": "their text is not what the policy saw: record into a store that may hold it, without `redact`",
    "held_out": "their tasks are kept for the gate or the test, and never trained on: branch off others",
    "errored": "an error ended the try, which says nothing about the policy: mend what raised it",
    "refused": "the endpoint refused the conversation: a longer one would be refused too; serve a longer context",
    "unjudged": "the verifier leaves them open, as `later` and `person` do, or fails on them: name one that judges "
    "them with --verifier; they wait until then",
    "disputed": "the verifier passes these answers, so it could not tell a better one: name one that sees the fault "
    "with --verifier, or label them as passed",
}
"""Remedies for recorded failures that are left out, by reason."""

SINCE = re.compile(r"(\d+)([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Recorded(Record):
    """Recorded failures that a collection can branch off, and those that are left out."""

    failures: tuple[Trajectory, ...]
    """Branches to run: trajectories with the recorded spans alone."""
    read: int
    """Number of recorded episodes."""
    left_out: dict[str, int] = {}
    """Number of recorded failures that are left out, by reason; `REMEDIES` has what to do."""
    why: str | None = None
    """First error of the verifier on a recorded answer."""

    def lines(self) -> list[str]:
        """Return what is left out, and the remedies, as lines for people."""
        lines = [f"{n} left out, {reason}: {REMEDIES[reason]}" for reason, n in self.left_out.items()]
        return [*lines, *([f"the verifier's first error: {self.why}"] if self.why else [])]

    def check(self) -> None:
        """Check that there is a failure to branch off.

        Raises:
            ConfigError: there is none; the message says why.
        """
        if not self.failures:
            why = "; ".join(self.lines()) or "none of their first tries failed; record more, or widen since or failed"
            raise ConfigError(f"nothing to branch off, in {self.read} recorded episodes: {why}")


class BranchReport(Record):
    """Report on branches of recorded failures."""

    summary: CollectSummary
    read: int
    """Number of recorded episodes."""
    branches: int
    """Recorded failures that were branched off."""
    left_out: dict[str, int] = {}
    """Number of recorded failures that are left out, by reason."""
    remedies: dict[str, str] = {}
    """Remedies for them, by reason."""


@checked
async def branch(
    trajectories: Iterable[Trajectory],
    *,
    policy: Policy,
    verifier: Verifier,
    out: str | Path,
    failed: bool = False,
    since: str = "",
    concurrency: AtLeastOne = 64,
    cut_off: CutOff = "fail",
    **collecting: Any,
) -> BranchReport:
    """Continue recorded failures with groups of reflections, and append the branches to the store at `out`.

    Each verifier that takes no environment judges the recorded answers again first, so that no token is sampled for an
    answer that it cannot judge. The recorded verdict and its feedback stay, and are what a reflection reads.

    Args:
        trajectories: recorded episodes, such as `load("runs/prod")`; those whose first try failed are branched off.
        failed: branch off only episodes whose final answer failed too.
        since: branch off only episodes that were recorded since then: `7d`, `12h`, or a date such as 2026-11-01.
        concurrency: maximum number of concurrent episodes.
        cut_off: as in `collect`.
        collecting: further arguments of `collect`, such as `reflections`, `retries`, `blind_retries` and `samples`.

    Raises:
        ConfigError: there is no failure to branch off, or an argument is invalid.
        R3Error: as `collect`.
    """
    chosen = choose(trajectories, failed=failed, since=since)
    chosen = await judged_again(chosen, verifier, cut_off=cut_off, concurrency=concurrency)
    chosen.check()
    given: Mapping[str, Any] = {"concurrency": concurrency, "cut_off": cut_off, **collecting}
    summary = await collect(chosen.failures, policy=policy, verifier=verifier, out=out, **given)
    return report(chosen, summary)


def report(recorded: Recorded, summary: CollectSummary) -> BranchReport:
    """Report on a collection of recorded failures."""
    return BranchReport(
        summary=summary,
        read=recorded.read,
        branches=len(recorded.failures),
        left_out=recorded.left_out,
        remedies={reason: REMEDIES[reason] for reason in recorded.left_out},
    )


def choose(trajectories: Iterable[Trajectory], *, failed: bool = False, since: str = "") -> Recorded:
    """Find the recorded failures that can be branched off; `branch` documents the arguments.

    A try that several episodes share, after a branch in the history of a thread, counts once.

    Raises:
        ConfigError: `since` is no time.
    """
    began = parse_since(since)
    recorded = [t for t in each_trajectory(trajectories) if not t.recorded]
    origin, seen = origins(recorded), set[tuple[str, str]]()
    failures: list[Trajectory] = []
    left_out: Counter[str] = Counter()
    for trajectory in recorded:
        if began is not None and _recorded_at(trajectory) < began:
            continue
        if (first := trajectory.attempt) is None or (
            place := (origin[trajectory.trajectory_id], first.span_id)
        ) in seen:
            continue
        seen.add(place)
        if trajectory.try_of(first).passed or (failed and trajectory.passed):
            continue
        if reason := _obstacle(trajectory):
            left_out[reason] += 1
        else:
            failures.append(branch_of(trajectory))
    return Recorded(failures=tuple(failures), read=len(recorded), left_out=dict(left_out))


async def judged_again(
    recorded: Recorded, verifier: Verifier, *, cut_off: CutOff = "fail", concurrency: int = 64
) -> Recorded:
    """Leave out the failures that a verifier cannot judge, or passes.

    One that takes the environment of a try is not asked, because the recorded try has none.
    """
    if takes_environment(verifier):
        return recorded
    slots, errors = asyncio.Semaphore(concurrency), list[str]()

    async def reason(begin: Trajectory) -> str | None:
        async with slots:
            try:
                (verdict,) = await judge(verifier, begin.task, [failed_try(begin)], cut_off=cut_off)
            except VerifierError as error:
                errors.append(str(error))
                return "unjudged"
        return "unjudged" if verdict is None else "disputed" if verdict.passed else None

    reasons = await gather_all(reason(begin) for begin in recorded.failures)
    kept = tuple(begin for begin, why in zip(recorded.failures, reasons, strict=True) if why is None)
    left_out = Counter(recorded.left_out) + Counter(filter(None, reasons))
    return recorded.model_copy(
        update={"failures": kept, "left_out": dict(left_out), "why": errors[0] if errors else recorded.why}
    )


def parse_since(text: str) -> datetime | None:
    """Parse `30m`, `12h`, `7d`, `2w` or a date in ISO 8601, which is UTC without a zone; `None` if empty.

    Raises:
        ConfigError: it is none of these.
    """
    if not text:
        return None
    if parts := SINCE.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{UNITS[parts[2]]: int(parts[1])})
    try:
        return _in_utc(datetime.fromisoformat(text))
    except ValueError:
        raise ConfigError(f"since = {text!r}: no time; write 7d, 12h or a date such as 2026-11-01") from None


def _recorded_at(trajectory: Trajectory) -> datetime:
    try:
        return _in_utc(datetime.fromisoformat(trajectory.created_at))
    except ValueError:  # a record that others wrote
        return datetime.min.replace(tzinfo=UTC)


def _in_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _obstacle(trajectory: Trajectory) -> str | None:
    """Return why a first try that did not pass cannot be branched off, as a key of `REMEDIES`."""
    first = failed_try(trajectory)
    if trajectory.metadata.get(SPLIT) in HELD_OUT:
        return "held_out"
    if first.error is not None:
        return "errored"
    if first.refused:
        return "refused"
    if first.verdict is None:
        return "unlabelled"
    if any(span.capability_note == REDACTED for span in first.steps):
        return "redacted"
    return None
