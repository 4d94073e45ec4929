"""Spans of OpenTelemetry, in the tracer provider of the process; without one, nothing is made and nothing is imported.

The provider is the one that the application has set, or the one of `export_spans`. A span is in the trace of the code
around it, and has the id of its trajectory. A fault of telemetry is logged once, and the program goes on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

T = TypeVar("T")

logger = logging.getLogger(__name__)

TRAJECTORY = "r3agent.trajectory.id"
"""Attribute of every span of an episode, and the key of its context."""

TRAJECTORIES = "r3agent.trajectory.ids"
"""Attribute of a training step: the trajectories that its rows are of."""

VERSION = "r3agent.policy.version"
"""Attribute of model calls, trainings and deploys: a policy version."""

Kind = Literal["INTERNAL", "CLIENT"]


class TraceSpan:
    """Span of a trace; one of this class itself is not made, because nobody has set a tracer."""

    context: Context | None = None
    """Context with the span as the current one."""

    def set(self, attributes: Callable[[], Mapping[str, Any]]) -> None:
        """Set attributes, which are made if the span is; those that are `None` are left out."""

    def fail(self, error: BaseException | str) -> None:
        """Mark the span as failed."""

    def end(self, end_ns: int | None = None) -> None:
        """End the span; a second time does nothing."""

    def enter(self) -> Context | None:
        """Make the span the current one; return the context around it."""

    def leave(self, outer: Context | None) -> None:
        """Go back to a context; code may leave a block in another context than the one that entered it."""

    def __enter__(self) -> TraceSpan:
        """Make the span the current one."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """End the span, with the error that ended the block."""


NO_SPAN = TraceSpan()


def _tell(fault: Exception) -> None:
    _tell_once(f"{type(fault).__name__}: {fault}")


@cache
def _tell_once(fault: str) -> None:
    logger.warning("a span of telemetry is lost: %s", fault)


class _MadeSpan(TraceSpan):
    """Span of a tracer, which need not be the current one of the code that runs."""

    def __init__(self, tracer: Tracer, name: str, kind: Kind, parent: Context | None, start_ns: int | None) -> None:
        from opentelemetry import trace

        self._span = tracer.start_span(name, parent, trace.SpanKind[kind], start_time=start_ns)
        self._context = self.context = trace.set_span_in_context(self._span, parent)
        self._outer: Context | None = None

    def set(self, attributes: Callable[[], Mapping[str, Any]]) -> None:
        def set_all() -> None:
            given = attributes() if self._span.is_recording() else {}
            self._span.set_attributes({name: value for name, value in given.items() if value is not None})

        guarded(set_all, None)

    def fail(self, error: BaseException | str) -> None:
        from opentelemetry.trace import StatusCode

        kind = error if isinstance(error, str) else type(error).__qualname__
        self.set(lambda: {"error.type": kind})
        guarded(lambda: self._span.set_status(StatusCode.ERROR), None)

    def end(self, end_ns: int | None = None) -> None:
        if self._span.is_recording():
            guarded(lambda: self._span.end(end_ns), None)

    def __enter__(self) -> _MadeSpan:
        self._outer = self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is not None and not _is_interrupt(error):
            self.fail(error)
        self.leave(self._outer)
        self.end()

    def enter(self) -> Context | None:
        from opentelemetry import context

        outer = context.get_current()
        context.attach(self._context)
        return outer

    def leave(self, outer: Context | None) -> None:
        from opentelemetry import context, trace

        if outer is not None and trace.get_current_span() is self._span:
            context.attach(outer)


def begin(
    name: str,
    attributes: Callable[[], Mapping[str, Any]],
    *,
    kind: Kind = "INTERNAL",
    trajectory_id: str | None = None,
    is_own: bool = False,
    parent: Context | None = None,
    start_ns: int | None = None,
) -> TraceSpan:
    """Begin a span: a context manager, or a span that the caller ends.

    Args:
        attributes: makes the attributes, if there is a tracer.
        trajectory_id: trajectory that the span belongs to, unless the context names it.
        is_own: the span is that trajectory's, whatever the context names.
        parent: context of the span around it, where the running code has none.
        start_ns: time of its beginning, in nanoseconds since the epoch; default: now.
    """
    if (tracer := _tracer()) is None:
        return NO_SPAN

    def make() -> TraceSpan:
        from opentelemetry import context, trace

        around = context.get_current()
        if parent is not None and not trace.get_current_span(around).get_span_context().is_valid:
            around = parent
        named = trajectory_id if is_own else context.get_value(TRAJECTORY, around) or trajectory_id
        if named is not None:
            around = context.set_value(TRAJECTORY, named, around)
        span = _MadeSpan(tracer, name, kind, around, start_ns)
        span.set(lambda: {TRAJECTORY: named, **attributes()})
        return span

    return guarded(make, NO_SPAN)


@contextmanager
def within_trajectory(trajectory_id: str | None, *, is_own: bool = False) -> Generator[None]:
    """Give the spans in a block the id of their trajectory, unless the code around it does.

    Args:
        is_own: they are that trajectory's, whatever the code around it names.
    """
    if trajectory_id is None or _tracer() is None:
        yield
        return
    from opentelemetry import context

    outer = context.get_current()
    is_named = not is_own and context.get_value(TRAJECTORY, outer) is not None
    context.attach(outer if is_named else context.set_value(TRAJECTORY, trajectory_id, outer))
    try:
        yield
    finally:
        context.attach(outer)


def here() -> Context | None:
    """Return the context of the running code, for spans of code that does not inherit it."""
    if _tracer() is None:
        return None
    from opentelemetry import context

    return context.get_current()


def now_ns() -> int | None:
    """Return the time if there is a tracer."""
    return None if _tracer() is None else time.time_ns()


def guarded(call: Callable[[], T], otherwise: T) -> T:
    """Call what may be an application's code, such as its span processors."""
    try:
        return call()
    except Exception as fault:
        _tell(fault)
        return otherwise


def _tracer() -> Tracer | None:
    """Return the tracer of the provider that is set; `None` if nobody has set one."""
    api: Any = sys.modules.get("opentelemetry.trace")  # half of it while another thread imports it
    if not hasattr(api, "ProxyTracerProvider"):
        return None
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider):
        return None
    if _tracers.get("provider") is not provider:
        _tracers.update(provider=provider, tracer=provider.get_tracer("r3agent"))
    return _tracers["tracer"]


_tracers: dict[str, Any] = {}
"""Last provider and its tracer, because making one takes longer than a span."""


def _is_interrupt(error: BaseException) -> bool:
    """Return True for an interrupt of LangGraph, which is no error."""
    from langgraph.errors import GraphBubbleUp

    return isinstance(error, GraphBubbleUp)
