"""Episodes of a gateway: which episode and try a call belongs to, and when an episode is complete.

A call names its episode ID and its try. The name of a try is a label, `attempt`, `reflect` or `retry`, and, where there
are several of one label, a suffix: `retry-2`, `attempt-b`. All calls of one name are steps of one try; each call named
`reflect` is a reflection of its own. A retry follows the reflection with its suffix (`retry-2` follows `reflect-2`), or
else the span whose conversation it continues, or else the last reflection; a reflection follows the attempt or retry
with its suffix, or the span whose conversation it continues, or else the last try.

An unknown ID begins an episode. A verdict is on one try, which takes no further call. A verdict of `passed` completes
the episode, as does `"end": true`; after another one it stays open for a reflection, a retry or another attempt. An
episode without calls for the idle time is complete too, and so are all at shutdown. A complete episode is stored once:
a verdict on it is a label of the store, and a call is refused, but after the idle time begins another one of that ID.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from r3agent.errors import ConfigError, R3Error, RecordError
from r3agent.recording.blocks import SpanScope
from r3agent.recording.conversation import attach
from r3agent.recording.episode import Episode
from r3agent.recording.exchange import Exchange
from r3agent.recording.recorder import Recorder
from r3agent.recording.terms import CallTerms
from r3agent.records.trajectory import EPISODE, EpisodeError, Label, Message, Span, Trajectory, Verdict, new_id
from r3agent.store.index import lookup
from r3agent.store.labels import label

EPISODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,127}")
TRY_NAME = re.compile(r"(attempt|reflect|retry)(?:-([A-Za-z0-9._~-]{1,64}))?")

MAX_COMPLETE = 100_000
"""Number of complete episodes that are remembered."""


class Refusal(Exception):
    """A request that the gateway does not forward."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Complete(NamedTuple):
    """A stored episode."""

    trajectory_id: str
    is_ended: bool
    """True if a verdict ended it, and not the idle time."""


@dataclass(eq=False)
class OpenEpisode:
    """Episode that takes calls."""

    episode_id: str
    episode: Episode
    tries: dict[str, SpanScope] = field(default_factory=dict[str, SpanScope])
    judged: set[str] = field(default_factory=set[str])
    """Names of the tries with a verdict."""
    calls: dict[Exchange, SpanScope] = field(default_factory=dict[Exchange, SpanScope])
    """Calls whose answer is not recorded yet, and their tries."""
    failure: str = ""
    """Reason why the last call that failed did."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    """Requests under way."""
    is_own: bool = False
    """True if it belongs to code of this process, which stores it."""
    terms: Callable[[], CallTerms | None] = lambda: None
    """Makes the terms of a further try, with the version that is live when the episode begins."""
    used_at: float = field(default_factory=time.monotonic)

    def record_answers(self) -> None:
        """Record the answers that have been sent, or are on their way."""
        for call in [call for call in self.calls if call.is_answered]:
            call.finish()

    def end(self, scope: SpanScope) -> None:
        """End a try, which is judged: of answers under way, it has what has come."""
        for call, owner in list(self.calls.items()):
            if owner is scope:
                call.finish()
        scope.ended = True

    def trajectory(self) -> Trajectory | None:
        """Return the record so far; `None` before the first call."""
        self.record_answers()
        try:
            return self.episode.trajectory
        except RecordError:
            return None


class Episodes:
    """Open episodes, and the ids of complete ones.

    Args:
        recorder: stores complete episodes; `None` in a gateway whose episodes belong to code of this process.
        idle_s: time without a call after which an episode is complete.
    """

    def __init__(self, recorder: Recorder | None, idle_s: float) -> None:
        self.open: dict[str, OpenEpisode] = {}
        self._recorder = recorder
        self._idle_s = idle_s
        self._complete: OrderedDict[str, Complete] = OrderedDict()

    def find(
        self,
        episode_id: str | None,
        try_name: str,
        messages: Sequence[Message],
        terms: Callable[[], CallTerms | None] = lambda: None,
    ) -> tuple[OpenEpisode, SpanScope]:
        """Find the place of a call, or begin its episode or try.

        Args:
            episode_id: `None` for an episode of one call.
            terms: those of an episode that begins.

        Raises:
            Refusal: the id or the name has another form, or the episode or try takes no further call.
        """
        if (match := TRY_NAME.fullmatch(try_name)) is None:
            raise Refusal(404, f"{try_name!r}: a try is called attempt, reflect or retry, or e.g. retry-2 for a second")
        label, suffix = cast(Label, match[1]), match[2]
        entry = self._entry(episode_id, terms)
        entry.used_at = time.monotonic()
        entry.record_answers()
        scope = entry.tries.get(try_name)
        if try_name in entry.judged:
            raise Refusal(
                410,
                f"the try {try_name!r} of episode {entry.episode_id!r} has its verdict; a further try has another "
                f"name, e.g. /episodes/{entry.episode_id}/{label}-{_next(entry, label)}/v1",
            )
        if (entry.is_own and scope is None) or (scope is not None and scope.ended):
            raise Refusal(410, f"the try {try_name!r} of episode {entry.episode_id!r} is not open; it has ended")
        if scope is None:
            parent = _parent(entry, label, suffix, messages)
            is_try = label != "reflect"
            scope = SpanScope(label, parent and parent.span_id, one_try=is_try, terms=entry.terms())
            entry.tries[try_name] = scope
        return entry, scope

    def _entry(self, episode_id: str | None, terms: Callable[[], CallTerms | None]) -> OpenEpisode:
        if episode_id is None:
            episode_id = new_id()
        elif (entry := self.open.get(episode_id)) is not None:
            return entry
        if self._recorder is None:
            raise Refusal(410, f"episode {episode_id!r}: not open; it has ended, or never began")
        if not EPISODE_ID.fullmatch(episode_id):
            raise Refusal(
                400, f"episode {episode_id[:140]!r}: an id has up to 128 letters, digits and . _ ~ : @ -, and no /"
            )
        done = self._complete.get(episode_id)
        if done is not None and done.is_ended:
            raise Refusal(410, f"episode {episode_id!r} has its verdict and is stored; give a further one another id")
        episode = Episode(None, None, None, {"metadata": {EPISODE: episode_id}})
        episode.begin_telemetry()
        self.open[episode_id] = OpenEpisode(episode_id, episode, terms=terms)
        return self.open[episode_id]

    def verdict(
        self, episode_id: str, try_name: str | None, *, passed: bool, score: float, feedback: str | None, end: bool
    ) -> str | None:
        """Set the verdict on a try of an open episode, by default the last; return the trajectory's id if that ends it.

        Raises:
            Refusal: there is no such try, or its calls failed, or code of this process judges it.
        """
        entry = self.open[episode_id]
        if entry.is_own:
            raise Refusal(409, f"episode {episode_id!r}: its try is judged by the verifier of the graph that runs it")
        entry.used_at = time.monotonic()
        entry.record_answers()
        tries = [name for name, scope in entry.tries.items() if scope.label != "reflect" and scope.span_ids]
        name = try_name or (max(tries, key=lambda n: _index(entry, n)) if tries else None)
        if name is None or name not in tries:
            has = f"episode {episode_id!r} has {', '.join(tries) or 'none yet'}"
            raise Refusal(409, f"verdict on {try_name or 'the last try'}: not a try with an answer; {has}")
        verdict = Verdict(passed=passed, score=score, feedback=feedback)
        entry.end(entry.tries[name])
        try:
            entry.episode.verdict(entry.tries[name], verdict=verdict)
        except ConfigError as error:
            raise Refusal(409, str(error)) from None
        entry.judged.add(name)
        return self.complete(entry, is_ended=True) if end else None

    def complete(self, entry: OpenEpisode, *, is_ended: bool = False) -> str | None:
        """Store an episode; return the trajectory's id, or `None` if there is nothing to store."""
        for call in list(entry.calls):
            call.finish()
        del self.open[entry.episode_id]
        recorded = entry.trajectory()
        entry.episode.closed = True
        entry.episode.telemetry.end()
        if recorded is None or self._recorder is None:
            return None
        if not recorded.spans:
            message = f"no call was answered: {entry.failure or 'the client left'}"
            recorded = recorded.changed(error=EpisodeError(kind="EndpointError", message=message))
        self._recorder.record(recorded)
        self.remember(entry.episode_id, Complete(recorded.trajectory_id, is_ended))
        return recorded.trajectory_id

    def remember(self, episode_id: str, complete: Complete) -> None:
        """Remember a stored episode, for verdicts that come later."""
        self._complete[episode_id] = complete
        self._complete.move_to_end(episode_id)
        while len(self._complete) > MAX_COMPLETE:
            self._complete.popitem(last=False)

    # ---- complete episodes; these read the store, and run in a thread ----

    def stored(self, episode_id: str) -> Trajectory:
        """Read a complete episode.

        Raises:
            Refusal: this gateway has stored none of this id.
        """
        complete = self._complete.get(episode_id)
        if complete is None or self._recorder is None:
            raise Refusal(404, f"episode {episode_id!r}: not open, and not one that this gateway has stored")
        self._recorder.flush()
        return lookup(self._recorder.directory, complete.trajectory_id)

    def label(self, episode_id: str, given: Mapping[str, Any]) -> str:
        """Label a complete episode with the verdict of a request; return the trajectory's id.

        Raises:
            Refusal: as `stored`, or the verdict is on another try than the last, or a score that a label has not.
        """
        stored = self.stored(episode_id)
        if given["label"] is not None:
            raise Refusal(409, f"episode {episode_id!r} is stored: leave out the label, or use `r3agent label`")
        if given["score"] not in (0, 1):
            raise Refusal(
                409, f"episode {episode_id!r} is stored: it takes passed, true or false, and no score between"
            )
        assert self._recorder is not None
        store, passed, feedback = self._recorder.directory, given["passed"], given["feedback"]
        try:
            return label(store, stored, passed=passed, feedback=feedback, by="gateway").trajectory_id
        except R3Error as error:
            raise Refusal(409, str(error)) from None

    # ---- open episodes ----

    def idle(self, now: float) -> Iterator[OpenEpisode]:
        """Yield the episodes without a call for the idle time."""
        for entry in list(self.open.values()):
            if not entry.is_own and not entry.calls and now - entry.used_at >= self._idle_s:
                yield entry


def _parent(entry: OpenEpisode, label: Label, suffix: str | None, messages: Sequence[Message]) -> Span | None:
    """Return the span that a new try follows; `None` for an attempt, and where nothing came before."""
    if label == "attempt" or not entry.episode.spans:
        return None
    spans = {span.span_id: span for span in entry.episode.spans}
    before: tuple[Label, ...] = ("reflect",) if label == "retry" else ("attempt", "retry")
    for name in [f"{kind}-{suffix}" for kind in before] if suffix else []:
        if (scope := entry.tries.get(name)) is not None and scope.span_ids:
            return spans[scope.span_ids[-1]]
    if (parent_id := attach(entry.episode.trajectory, None, messages).get("parent_id")) is not None:
        return spans[parent_id]
    return next((span for span in reversed(entry.episode.spans) if span.label in before), entry.episode.spans[-1])


def _index(entry: OpenEpisode, name: str) -> int:
    """Return the place of a try's last span among all."""
    ids = [span.span_id for span in entry.episode.spans]
    return ids.index(entry.tries[name].span_ids[-1])


def _next(entry: OpenEpisode, label: Label) -> int:
    """Return a suffix that no try has."""
    return next(number for number in range(2, len(entry.tries) + 3) if f"{label}-{number}" not in entry.tries)
