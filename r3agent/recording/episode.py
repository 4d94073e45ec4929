"""Episode that is being recorded, from its first block to its last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from langgraph.errors import GraphBubbleUp

from r3agent.errors import ConfigError, RecordError
from r3agent.policy.live import Target
from r3agent.recording.blocks import Block, SpanScope, caller, current, enter, leave
from r3agent.recording.episode_record import EpisodeRecord, SpanRef
from r3agent.recording.recorder import Recorder
from r3agent.recording.terms import CallTerms
from r3agent.records.json_values import any_text
from r3agent.records.trajectory import EpisodeError, Label, Trajectory
from r3agent.store.shards import TrajectoryWriter
from r3agent.telemetry import genai

logger = logging.getLogger(__name__)

ENDED = "the episode has ended: calls in this block are not recorded with it; begin another trace()"

OUTER = "outer_trajectory_id"
"""Metadata key of a trace within another: the id of the outer one."""

S = TypeVar("S", bound=SpanScope | None)


@dataclass(eq=False, repr=False)
class Episode(EpisodeRecord):
    """Episode that is being recorded; created by `trace`."""

    missed: int = field(default=0, init=False)
    """Number of calls in threads without a trace while this one was open."""
    pins: dict[Any, Target] = field(default_factory=dict[Any, Target], init=False)
    """Version of each `LiveName` that the episode keeps."""
    _finishers: list[tuple[SpanScope | None, Callable[[], None]]] = field(default_factory=list, init=False)
    _blocks: list[Block] = field(default_factory=list, init=False)
    """Open `with` blocks: the episode ends with the last one."""
    _first: Block | None = field(default=None, init=False)

    @classmethod
    def seeded(cls, tree: Trajectory, recorder: Recorder | None = None, out: str | Path | None = None) -> Episode:
        """Make an episode that goes on where a trajectory ends.

        Without `recorder` and `out` it stays in memory, and its owner tells if no call was recorded.
        """
        fields = {name: value for name, value in tree if name not in ("task", "spans", "error")}
        episode = cls(tree.task, recorder, out, fields)
        episode._spans, episode._called = list(tree.spans), bool(tree.spans) or not (recorder or out)
        episode.tools.skip(tree.spans)
        return episode

    @classmethod
    def lost(cls, trajectory_id: str) -> Episode:
        """Make an episode that goes on after a part that is not recorded, and is not recorded either."""
        episode = cls(None, None, None, {"trajectory_id": trajectory_id})
        episode._n_lost, episode._called = 1, True
        return episode

    # ---- called by the traced code ----

    @contextmanager
    def span(self, label: Label, *, parent: SpanRef | None = None) -> Generator[SpanScope]:
        """Label the calls in a block; calls outside such a block are attempts.

        Args:
            parent: parent span of the calls; default: the span whose conversation they continue, if there is one.

        Raises:
            ConfigError: there is no such label, or the parent is not a span of this episode, all of whose calls are
                recorded.
        """
        if label not in get_args(Label):
            raise ConfigError(f"span({label!r}): the label must be one of {', '.join(get_args(Label))}")
        above = None if parent is None else self._find(parent)
        with self._entered(SpanScope(label, above and above.span_id)) as scope:
            yield scope

    @contextmanager
    def one_try(
        self, label: Label, *, parent: SpanRef | None = None, terms: CallTerms | None = None
    ) -> Generator[SpanScope]:
        """Record all calls in a block as the steps of one try, in whatever thread or task that inherits it.

        A call that continues the conversation of an earlier step becomes its child, any other that of the last step.

        Args:
            parent: parent of the first step; default: it is a root of the tree.
            terms: applied to each call.

        Raises:
            ConfigError: the label is not that of a try, or the parent is not a span of this episode.
        """
        if label not in ("attempt", "retry"):
            raise ConfigError(f"one_try({label!r}): the label must be attempt or retry")
        above = None if parent is None else self._find(parent)
        with self._entered(SpanScope(label, above and above.span_id, one_try=True, terms=terms)) as scope:
            try:
                yield scope
            finally:
                self.end(scope)

    @contextmanager
    def aside(self, purpose: str) -> Generator[None]:
        """Label the calls in a block as not the policy's; they are recorded, and never trained on.

        In `one_try` they are steps of that try; elsewhere they are roots of the tree, and no tries.

        Args:
            purpose: what they are for, e.g. "router".
        """
        block = current()
        scope = block.scope if block is not None and block.episode is self else None
        with self._entered(scope, purpose):
            yield

    @contextmanager
    def _entered(self, scope: S, purpose: str | None = None) -> Generator[S]:
        if self.closed:
            self.warn(ENDED)
            yield scope
            return
        block = enter(self, scope, purpose)
        try:
            yield scope
        finally:
            leave(block)

    def end(self, scope: SpanScope) -> None:
        """End a try: record its streams as far as they were read; later calls are not recorded."""
        with self._lock:
            finishers = [finish for owner, finish in self._finishers if owner is scope]
            self._finishers = [(owner, finish) for owner, finish in self._finishers if owner is not scope]
            for finish in finishers:
                finish()
            scope.ended = True

    # ---- called by the instrumented client ----

    def at_end(self, finish: Callable[[], None], scope: SpanScope | None = None) -> None:
        """Call `finish` at the end of the try or the episode, e.g. to record a stream that was not read to its end."""
        with self._lock:
            self._finishers.append((scope, finish))

    # ---- beginning and end ----

    def __enter__(self) -> Episode:
        """Begin the episode, or join it, e.g. in another thread."""
        with self._lock:
            if self.closed:
                self.warn(ENDED)
            else:
                if self._first is None and (around := current()) is not None and around.episode is not self:
                    self._link(around.episode)
                if self._first is None and (self._recorder or self._out):
                    self.begin_telemetry()
                block = enter(self)
                block.outside = self.telemetry.enter()
                self._blocks.append(block)
                self._first = self._first or block
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        with self._lock:
            if not self._blocks:
                return  # the episode had ended before
            frame = caller()
            own = next((block for block in reversed(self._blocks) if block.frame is frame), self._blocks[-1])
            self._blocks.remove(own)
            leave(own)
            self.telemetry.leave(own.outside)
            if error is not None and own is self._first and not isinstance(error, GraphBubbleUp):
                self._fields["error"] = EpisodeError(kind=type(error).__name__, message=self.redact(any_text(error)))
            if self._blocks:
                return
            for _scope, finish in self._finishers:
                finish()
            self.closed = True
            if "error" in self._fields:
                self.telemetry.fail(self._fields["error"].kind)
            self.telemetry.end()
        if self.missed:
            self.warn(f"{self.missed} calls of threads in no trace were made while this one was open: not recorded")
        if not self._called:
            self.warn(
                "the trace ends without a recorded call: none was made, or not by a client that instrument() returned "
                "(applications often have a sync and an async one), or in a thread that is not in `with episode:`"
            )
        if self._task is None or not (self._spans or "error" in self._fields):
            return  # no span and no error: there is no episode to record
        try:
            recorded = self.trajectory
        except Exception as fault:  # the application goes on whatever happens here
            logger.warning("an episode is not recorded: %s: %s", type(fault).__name__, fault)
            return
        if self._recorder is not None:
            self._recorder.record(recorded)
        if self._out is not None:
            try:
                with TrajectoryWriter(self._out, unique=True, indexed=False) as writer:
                    writer.append(recorded)
            except (ConfigError, RecordError) as refused:
                if error is None:
                    raise
                logger.warning("%s", refused)  # the error of the block takes precedence

    def _link(self, outer: Episode) -> None:
        """Name the episode around this one in its metadata."""
        outer._called = True  # its calls may all be in inner ones
        self._fields["metadata"] = {**self._fields.get("metadata", {}), OUTER: outer.trajectory_id}

    def begin_telemetry(self) -> None:
        """Begin the span of the whole episode."""
        self.telemetry = genai.episode(self._task, trajectory_id=self.trajectory_id)
        self.around = self.telemetry.context or self.around

    async def __aenter__(self) -> Episode:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        self.__exit__(kind, error, *rest)
