"""Record of an episode: its spans, their places in the tree, and the verdicts on its tries."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError, RecordError
from r3agent.http.errors import redact_key
from r3agent.recording.blocks import SpanScope
from r3agent.recording.conversation import attach, attach_step
from r3agent.recording.judgement import read_judgement
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import Generation, Message, Span, Task, Trajectory, new_id
from r3agent.telemetry import genai
from r3agent.telemetry.tools import ToolSpans
from r3agent.telemetry.tracing import NO_SPAN, TraceSpan, here
from r3agent.verifiers.interface import Judgement

logger = logging.getLogger(__name__)

SpanRef: TypeAlias = SpanScope | Span | str
"""A span, a span id, or a scope, which stands for its last span."""


@dataclass(eq=False, repr=False)
class EpisodeRecord:
    """Record of an episode so far; safe for threads."""

    _task: Task | None
    _recorder: Recorder | None
    _out: str | Path | None
    _fields: dict[str, Any]
    closed: bool = field(default=False, init=False)
    _keys: set[str] = field(default_factory=set, init=False)
    """API keys of the clients, which are never recorded."""
    _spans: list[Span] = field(default_factory=list, init=False)
    _called: bool = field(default=False, init=False)
    _awaits_policy: bool = field(default=False, init=False)
    """True while the task is that of a call that is not the policy's, until the policy's first call defines it."""
    _n_lost: int = field(default=0, init=False)
    """Number of its calls without a span: they failed, or cannot be recorded."""
    _is_try_lost: bool = field(default=False, init=False)
    """True if the last try is such a call."""
    _warned: set[str] = field(default_factory=set, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    telemetry: TraceSpan = field(default=NO_SPAN, init=False)
    """Span of the whole episode, if it is not a part of another one."""
    tools: ToolSpans = field(default_factory=ToolSpans, init=False)
    """Spans of telemetry of its tools."""
    around: Any = field(default_factory=here, init=False)
    """Context of telemetry in which the episode began, for calls in threads that do not inherit it."""

    # ---- called by the traced code ----

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
        judgement = read_judgement(passed, score, verdict, feedback)
        with self._lock:
            found = self._last_of(span)
            if self._n_lost and (found is None or (span is None and self._is_try_lost)):
                self.warn("a verdict is not recorded: its try is not")
                return
            if found is None or found.label == "reflect":
                raise ConfigError("a verdict needs a try of this episode: an attempt or a retry that was answered")
            given = {} if answer is None else {"answer": answer}
            self._spans[self._spans.index(found)] = found.model_copy(update={"verdict": judgement, **given})
            with genai.evaluation("application", found, parent=self.around, trajectory_id=self.trajectory_id) as event:
                genai.judged(event, judgement)
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
    def trajectory_id(self) -> str:
        """Id of the record, which does not change."""
        return self._fields.setdefault("trajectory_id", new_id())

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
        self.tools.see(messages or (), self.spans, trajectory_id=self.trajectory_id, parent=self.around)

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


def _answers_calls(span: Span) -> bool:
    """Return True for a step that is one whatever verdict its parent has."""
    return span.label != "reflect" and bool(span.request) and span.request[-1].get("role") == "tool"
