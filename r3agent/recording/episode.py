"""Episode that is being recorded: its spans and verdicts, from its first block to its last."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from langgraph.errors import GraphBubbleUp

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError, RecordError
from r3agent.http.errors import redact_key
from r3agent.policy.live import Target
from r3agent.recording.blocks import Block, SpanScope, caller, current, enter, leave
from r3agent.recording.conversation import attach, attach_step
from r3agent.recording.recorder import Recorder
from r3agent.recording.terms import CallTerms
from r3agent.records.json_values import any_text, json_value, plain
from r3agent.records.record import new_id
from r3agent.records.trajectory import EpisodeError, Generation, Label, Message, Span, Task, Trajectory, Verdict
from r3agent.store.shards import TrajectoryWriter
from r3agent.verifiers.interface import Judgement, verdict_of

logger = logging.getLogger(__name__)

ENDED = "the episode has ended: calls in this block are not recorded with it; begin another trace()"

OUTER = "outer_trajectory_id"
"""Metadata key of a trace within another: the id of the outer one."""

SpanRef: TypeAlias = SpanScope | Span | str
"""A span, a span id, or a scope, which stands for its last span."""

S = TypeVar("S", bound=SpanScope | None)


@dataclass(eq=False, repr=False)
class Episode:
    """Episode that is being recorded; created by `trace`."""

    _task: Task | None
    _recorder: Recorder | None
    _out: str | Path | None
    _fields: dict[str, Any]
    closed: bool = field(default=False, init=False)
    missed: int = field(default=0, init=False)
    """Number of calls in threads without a trace while this one was open."""
    _keys: set[str] = field(default_factory=set, init=False)
    """API keys of the clients, which are never recorded."""
    pins: dict[Any, Target] = field(default_factory=dict[Any, Target], init=False)
    """Version of each `LiveName` that the episode keeps."""
    _spans: list[Span] = field(default_factory=list, init=False)
    _finishers: list[tuple[SpanScope | None, Callable[[], None]]] = field(default_factory=list, init=False)
    _called: bool = field(default=False, init=False)
    _awaits_policy: bool = field(default=False, init=False)
    """True while the task is that of a call that is not the policy's, until the policy's first call defines it."""
    _n_lost: int = field(default=0, init=False)
    """Number of its calls without a span: they failed, or cannot be recorded."""
    _is_try_lost: bool = field(default=False, init=False)
    """True if the last try is such a call."""
    _warned: set[str] = field(default_factory=set, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _blocks: list[Block] = field(default_factory=list, init=False)
    """Open `with` blocks: the episode ends with the last one."""
    _first: Block | None = field(default=None, init=False)

    @classmethod
    def seeded(cls, tree: Trajectory, recorder: Recorder | None = None, out: str | Path | None = None) -> Episode:
        """Make an episode that goes on where a trajectory ends; without `recorder` and `out` it stays in memory."""
        fields = {name: value for name, value in tree if name not in ("task", "spans", "error")}
        episode = cls(tree.task, recorder, out, fields)
        episode._spans, episode._called = list(tree.spans), bool(tree.spans)
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

    def spans_of(self, scope: SpanScope) -> tuple[Span, ...]:
        """Return the spans that were sampled in a block."""
        return tuple(span for span in self._spans if span.span_id in scope.span_ids)

    def verdict(
        self,
        span: SpanRef | None = None,
        *,
        passed: bool | None = None,
        score: float | None = None,
        verdict: Judgement | None = None,
        feedback: str | None = None,
        answer: str | None = None,
    ) -> None:
        """Set the verdict on a try, by default the last one; that of a try of several steps is on its last span.

        A verdict on a try that is not recorded is not recorded either, with a warning.

        Args:
            passed, score, verdict: one of these; a score passes if it is 1, and `verdict` is what a verifier returns.
            feedback: reason.
            answer: the application's answer, if it is not the text of the last step.

        Raises:
            ConfigError: there is no such try, and all calls of the episode are recorded; or it is no verdict.
        """
        judgement = _judgement(passed, score, verdict, feedback)
        with self._lock:
            found = self._last_of(span)
            if self._n_lost and (found is None or (span is None and self._is_try_lost)):
                self.warn("a verdict is not recorded: its try is not")
                return
            if found is None or found.label == "reflect":
                raise ConfigError("a verdict needs a try of this episode: an attempt or a retry that was answered")
            given = {} if answer is None else {"answer": answer}
            self._spans[self._spans.index(found)] = found.model_copy(update={"verdict": judgement, **given})
        if self.closed and (self._recorder or self._out):
            self.warn(
                "the episode was recorded before this verdict, which is not stored; set it inside of the block, or use "
                f"r3agent.label(STORE, {self.trajectory.trajectory_id!r}, passed={judgement.passed})"
            )

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)

    @property
    def answer(self) -> Span:
        """Last span of the last try of the episode.

        Raises:
            LookupError: there is no try yet, and all calls of the episode are recorded.
        """
        if (last := self._last_of(None)) is None:
            if self._n_lost:
                return Span(label="attempt", text="", model="", capability_note="not recorded")
            raise LookupError("this episode has no try yet: ask an instrumented client inside of it first")
        return last

    def _last_of(self, span: SpanRef | None) -> Span | None:
        """Return the last step of the try that a span belongs to, by default of the last try; `None` without one."""
        if not self._spans:
            return None if span is None else self._find(span)
        tree = self.trajectory
        if span is None:
            return tree.tries[-1].last if tree.tries else None
        found = self._find(span)
        while found is not None and (steps := [child for child in tree.children(found) if _answers_calls(child)]):
            found = steps[-1]
        return found

    @property
    def trajectory(self) -> Trajectory:
        """Record so far; its id does not change.

        Raises:
            RecordError: there is no task and no call yet.
        """
        with self._lock:
            if self._task is None:
                raise RecordError("this episode has no task yet; pass one to trace(), or ask something first")
            recorded = Trajectory(task=self._task, spans=self.spans, **self._fields)
            self._fields |= {"trajectory_id": recorded.trajectory_id, "created_at": recorded.created_at}
            return recorded

    def redact(self, text: str) -> str:
        """Remove the keys of the clients from a text."""
        return reduce(redact_key, self._keys, text)

    # ---- called by the instrumented client ----

    def warn(self, message: str) -> None:
        """Log what is not recorded, once for each message."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    def lose(self, scope: SpanScope | None) -> None:
        """Count a call that has no span."""
        with self._lock:
            self._n_lost += 1
            self._is_try_lost |= scope is None or scope.label != "reflect"

    def begin(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        keys: Iterable[str],
        purpose: str | None = None,
    ) -> None:
        """Register a call; the policy's first call defines the task, unless `trace` got one."""
        with self._lock:
            self._called = True
            self._keys |= {key for key in keys if key}
            if self._task is None or (self._awaits_policy and purpose is None):
                self._task = Task.model_validate({"messages": messages, "tools": tools})
                self._awaits_policy = purpose is not None

    def add(
        self,
        generations: Iterable[Generation],
        scope: SpanScope | None,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        purpose: str | None = None,
    ) -> None:
        """Add the generations of a call as spans."""
        with self._lock:
            label, tree = "attempt" if scope is None else scope.label, self.trajectory
            place: dict[str, Any]
            if scope is not None and scope.one_try:
                place = attach_step(tree, scope.parent_id, scope.span_ids, messages)
            elif purpose is not None:
                label, place = "attempt", {"request": messages, "standalone": True}
            else:
                place = attach(tree, scope and scope.parent_id, messages)
            if self._awaits_policy:  # the task will be another one
                place |= {"request": messages, "standalone": True}
            if any(message.get("role") == "assistant" for message in place["request"]) and not place.get("standalone"):
                self.warn(
                    "a conversation continues with an answer that was not recorded: another client gave it, or the "
                    "application wrote it"
                )
            place |= {"label": label, "purpose": purpose}
            self._is_try_lost &= label == "reflect" or purpose is not None
            same_tools = list(tree.task.tools) == list(tools)
            for generation in generations:
                fields = dict(generation)
                if generation.capability == "trainable-retokenised" and not same_tools:
                    note = f"{generation.capability_note}, and it was asked with other tools than the task's"
                    fields |= {"capability": "eval-only", "capability_note": note, "logprobs": None}
                span = Span.model_validate({**fields, **place})
                self._spans.append(span)
                if scope is not None:
                    scope.span_ids.append(span.span_id)
                    if scope.one_try:  # further choices are steps too, so that the record has one try
                        place |= {"parent_id": span.span_id, "request": messages, "standalone": True}

    def append(self, span: Span, scope: SpanScope) -> None:
        """Add a span whose place in the tree is known."""
        with self._lock:
            self._called = True
            self._spans.append(span)
            scope.span_ids.append(span.span_id)

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
                self._blocks.append(enter(self))
                self._first = self._first or self._blocks[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        with self._lock:
            if not self._blocks:
                return  # the episode had ended before
            frame = caller()
            own = next((block for block in reversed(self._blocks) if block.frame is frame), self._blocks[-1])
            self._blocks.remove(own)
            leave(own)
            if error is not None and own is self._first and not isinstance(error, GraphBubbleUp):
                self._fields["error"] = EpisodeError(kind=type(error).__name__, message=self.redact(any_text(error)))
            if self._blocks:
                return
            for _scope, finish in self._finishers:
                finish()
            self.closed = True
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
                with TrajectoryWriter(self._out, unique=True) as writer:
                    writer.append(recorded)
            except (ConfigError, RecordError) as refused:
                if error is None:
                    raise
                logger.warning("%s", refused)  # the error of the block takes precedence

    def _link(self, outer: Episode) -> None:
        """Name the episode around this one in its metadata."""
        outer._called = True  # its calls may all be in inner ones
        outer_id = outer._fields.setdefault("trajectory_id", new_id())
        self._fields["metadata"] = {**self._fields.get("metadata", {}), OUTER: outer_id}

    async def __aenter__(self) -> Episode:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        self.__exit__(kind, error, *rest)

    def _find(self, ref: SpanRef) -> Span | None:
        """Find a span; return `None` if it may be of a call that is not recorded."""
        match ref:
            case SpanScope():
                span_id = ref.span_ids[-1] if ref.span_ids else ""
            case Span():
                span_id = ref.span_id
            case str():
                span_id = ref
            case _:
                raise ConfigError(f"span {shorten(ref)}: give a span, its id or its scope")
        for span in self._spans:
            if span.span_id == span_id:
                return span
        if self._n_lost:
            self.warn("a span is not found: its call is not recorded")
            return None
        spans = ", ".join(f"{s.span_id} ({s.label})" for s in self._spans) or "none yet"
        raise ConfigError(f"span {span_id!r}: not of this episode, whose spans are: {spans}")


def _judgement(passed: object, score: object, verdict: object, feedback: object) -> Verdict:
    given = [value for value in (passed, score, verdict) if value is not None]
    if len(given) != 1:
        raise ConfigError(f"verdict(): {len(given)} of passed, score and verdict are given; give one of them")
    value = plain(given[0])
    try:
        if passed is not None and value not in (True, False):
            raise TypeError
        judgement = verdict_of(bool(value) if passed is not None else value)
    except TypeError:
        raise ConfigError(
            f"verdict(): {shorten(value)} is none; give passed=True or False, a score from 0 to 1, or a Verdict"
        ) from None
    if feedback is None:
        return judgement
    text = feedback if isinstance(feedback, str) else json.dumps(json_value(feedback))
    return judgement.model_copy(update={"feedback": text})


def _answers_calls(span: Span) -> bool:
    """Return True for a step that is one whatever verdict its parent has."""
    return span.label != "reflect" and bool(span.request) and span.request[-1].get("role") == "tool"
