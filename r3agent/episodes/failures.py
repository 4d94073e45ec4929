"""Recorded failures that a collection can branch off, and why others are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

from r3agent._util.aio import gather_all
from r3agent._util.messages import count, listed
from r3agent.errors import ConfigError, VerifierError
from r3agent.recording.redaction import NOTE as REDACTED
from r3agent.records.branching import branch_of, n_tries, origins, recorded_try
from r3agent.records.trajectory import HELD_OUT, SPLIT, Record, Trajectory, Try
from r3agent.store.batches import batches_of
from r3agent.verifiers import Verifier, judge
from r3agent.verifiers.interface import CutOff, takes_environment

REMEDIES = {
    "passed": "their final answer passed, and --failed leaves these episodes out: without it, their failed tries count",
    "unlabelled": "no verdict says that they failed: `r3agent label STORE --from FILE.csv` adds what people said, and "
    "`r3agent reverify STORE --verifier NAME` what a verifier says",
    "redacted": "their text is not what the policy saw: record into a store that may hold it, without `redact`",
    "held_out": "their tasks are kept for the gate or the test, and never trained on: branch off others",
    "errored": "an error ended the try or the episode, which says nothing about the policy: mend what raised it",
    "refused": "the endpoint refused the conversation: a longer one would be refused too; serve a longer context",
    "several_steps": "their tries have several steps, and a retry would be one completion: name what makes the tries "
    "with --agent or --tools",
    "drawn": "this policy version has reflected on them as often already: train on them, or raise --reflections",
    "unjudged": "the verifier leaves them open, as `later` and `person` do, or fails on them: name one that judges "
    "them with --verifier; they wait until then",
    "disputed": "the verifier passes these answers, so it could not tell a better one: name one that sees the fault "
    "with --verifier, or label them as passed",
}
"""Remedies for recorded failures that are left out, by reason."""

SINCE = re.compile(r"(\d{1,6})([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class NextGroup(NamedTuple):
    """Group of reflections that is to be drawn of each recorded failure."""

    max_attempts: int = 2
    reflections: int = 8
    version: str | None = None
    """Policy version that samples; `None` if it is not known."""
    is_agent: bool = False
    """True if an agent or tools make the tries."""


ANY = NextGroup()
"""Group with the default settings, of a version that is not known."""


class Failures(Record):
    """Recorded failures that a collection can branch off, and those that are left out."""

    begins: tuple[Trajectory, ...]
    """Beginnings of the branches: trajectories with the recorded spans alone."""
    read: int
    """Number of recorded episodes."""
    left_out: dict[str, int] = {}
    """Number of recorded failures that are left out, by reason, and of episodes for `passed`, and without a failure for
    `errored`; see `REMEDIES`."""
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
        if not self.begins:
            why = self.lines() or [
                "no try failed that max_attempts lets be retried; record more, or widen since, failed or max_attempts"
            ]
            raise ConfigError(listed(f"nothing to branch off, in {count(self.read, 'recorded episode')}:", why))


def choose(
    trajectories: Iterable[Trajectory],
    *,
    failed: bool = False,
    since: str = "",
    seed: int = 0,
    held_out: Callable[[list[Trajectory]], Set[str]] = lambda _: frozenset(),
    group: NextGroup = ANY,
) -> Failures:
    """Find the recorded tries that failed and can be branched off, in an order that depends on `seed`.

    A try that several episodes share, after a branch in the history of a thread, counts once. Of an episode that is a
    branch itself, no try is taken.

    Args:
        failed: as in `branch`, as are `since` and `seed`.
        held_out: returns the ids of trajectories whose tasks are held out, besides those whose records say so.

    Raises:
        ConfigError: `since` is no time.
    """
    began = parse_since(since)
    begins: list[Trajectory] = []
    left_out: Counter[str] = Counter()
    n_read = 0
    for batch in batches_of(trajectories):
        recorded, kept_apart = [t for t in batch if not t.recorded], held_out(batch)
        n_read += len(recorded)
        origin, seen = origins(recorded), set[tuple[str, str]]()
        for trajectory in recorded:
            if began is not None and _recorded_at(trajectory) < began:
                continue
            if failed and trajectory.passed:
                left_out["passed"] += 1
                continue
            tries = _not_passed(trajectory, group.max_attempts)
            if not tries and trajectory.error is not None:
                left_out["errored"] += 1
            for a_try in tries:
                if (place := (origin[trajectory.trajectory_id], a_try.last.span_id)) in seen:
                    continue
                seen.add(place)
                is_held_out = trajectory.trajectory_id in kept_apart or trajectory.metadata.get(SPLIT) in HELD_OUT
                if reason := "held_out" if is_held_out else _obstacle(trajectory, a_try, group):
                    left_out[reason] += 1
                else:
                    begins.append(branch_of(trajectory, a_try.last.span_id))
    begins.sort(key=lambda begin: sha256(f"{seed} {begin.parent_id} {begin.spans[-1].span_id}".encode()).digest())
    return Failures(begins=tuple(begins), read=n_read, left_out=dict(left_out))


async def judged_again(
    failures: Failures,
    verifier: Verifier,
    *,
    n: int | None = None,
    cut_off: CutOff = "fail",
    timeout_s: float | None = None,
    concurrency: int = 64,
) -> Failures:
    """Leave out the failures that a verifier cannot judge, or passes, and keep the first `n` others.

    One that takes the environment of a try is not asked, because the recorded try has none.

    Args:
        cut_off, timeout_s: as in `judge`.
    """
    errors = list[str]()

    async def reason(begin: Trajectory) -> str | None:
        if takes_environment(verifier):
            return None
        try:
            (verdict,) = await judge(verifier, begin.task, [recorded_try(begin)], cut_off=cut_off, timeout_s=timeout_s)
        except VerifierError as error:
            errors.append(str(error))
            return "unjudged"
        return "unjudged" if verdict is None else "disputed" if verdict.passed else None

    kept: list[Trajectory] = []
    left_out = Counter(failures.left_out)
    for start in range(0, len(failures.begins), concurrency):
        if n is not None and len(kept) >= n:
            break
        begins = failures.begins[start : start + concurrency]
        reasons = await gather_all(map(reason, begins))
        left_out.update(why for why in reasons if why is not None)
        kept += [begin for begin, why in zip(begins, reasons, strict=True) if why is None]
    return Failures(
        begins=tuple(kept[:n]),
        read=failures.read,
        left_out=dict(left_out),
        why=errors[0] if errors else None,
    )


def parse_since(text: str) -> datetime | None:
    """Parse `30m`, `12h`, `7d`, `2w` or a date in ISO 8601, which is UTC without a zone; `None` if empty.

    Raises:
        ConfigError: it is none of these, or before the year 1.
    """
    if not text:
        return None
    try:
        if parts := SINCE.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[parts[2]]: int(parts[1])})
        return _in_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise ConfigError(f"since = {text!r}: no time; write 7d, 12h or a date such as 2026-11-01") from None


def _recorded_at(trajectory: Trajectory) -> datetime:
    try:
        return _in_utc(datetime.fromisoformat(trajectory.created_at))
    except ValueError:  # a record that others wrote
        return datetime.min.replace(tzinfo=UTC)


def _in_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _not_passed(trajectory: Trajectory, max_attempts: int) -> list[Try]:
    """List the tries that did not pass and could be retried: blind retries are a control, which is never retried."""
    tries = [t for t in trajectory.tries if not t.passed and not t.is_blind]
    return [t for t in tries if n_tries(trajectory, t.last) < max_attempts]


def _obstacle(trajectory: Trajectory, a_try: Try, group: NextGroup) -> str | None:
    """Return why a try that did not pass cannot be branched off, as a key of `REMEDIES`."""
    if a_try.error is not None:
        return "errored"
    if a_try.refused:
        return "refused"
    if a_try.verdict is None:
        return "unlabelled"
    path = trajectory.path(a_try.last)
    if any(span.capability_note == REDACTED for span in path):
        return "redacted"
    if len(a_try.steps) > 1 and not group.is_agent:
        return "several_steps"
    reflections = [span for span in trajectory.children(a_try.last, "reflect") if not span.refused]
    own = [span for span in reflections if span.policy_version == group.version]
    return "drawn" if group.version is not None and len(own) >= max(group.reflections, 1) else None
