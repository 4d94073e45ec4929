"""Open blocks of `trace` and `Episode.span`, and the one that a call belongs to.

A block is found by a context variable, which tasks and `asyncio.to_thread` inherit, or by the call stack: the function
with the `with` statement is on it, also where another thread or context iterates a generator. A new thread has neither.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import currentframe
from types import FrameType
from typing import Any

from r3agent.recording.terms import CallTerms
from r3agent.records.trajectory import Label


@dataclass
class SpanScope:
    """Block of one `episode.span(...)` or `episode.one_try(...)`; its calls become spans."""

    label: Label
    parent_id: str | None
    span_ids: list[str] = field(default_factory=list)
    """Ids of the spans that were sampled in the block, in order."""
    one_try: bool = False
    """True if all calls are steps of one try."""
    terms: CallTerms | None = None
    """Terms of the calls."""
    ended: bool = False
    """True once the try has ended; later calls are not recorded."""


@dataclass(eq=False)
class Block:
    """A block that was entered."""

    episode: Any
    """The `Episode`, whose module imports this one."""
    scope: SpanScope | None
    outer: Block | None
    """Block that the context was in before."""
    around: Block | None
    """Block that was on the stack."""
    frame: FrameType | None
    """Frame of the function with the `with` statement, until the block is left."""
    purpose: str | None = None
    """Purpose of the calls, if they are not the policy's."""
    outside: Any = None
    """Context of telemetry around the block, if it is one of the whole episode."""
    thread_id: int = field(default_factory=threading.get_ident)
    process_id: int = field(default_factory=os.getpid)

    @property
    def has_ended_try(self) -> bool:
        """Return True if a call in this block comes after the try that it belongs to."""
        return self.scope is not None and self.scope.ended


_current: ContextVar[Block | None] = ContextVar("r3agent_trace", default=None)
_is_silent: ContextVar[bool] = ContextVar("r3agent_unrecorded", default=False)
_lock = threading.Lock()
_blocks: dict[FrameType | None, list[Block]] = {}
"""Open blocks of each frame, the innermost last."""
_MANAGERS = (__name__, "contextlib", "r3agent.recording.episode")
"""Modules whose functions enter a block for their caller."""


def enter(episode: Any, scope: SpanScope | None = None, purpose: str | None = None) -> Block:
    """Open a block in the caller's function and context."""
    block = Block(episode, scope, outer=_current.get(), around=_nearest(), frame=caller(), purpose=purpose)
    with _lock:
        _blocks.setdefault(block.frame, []).append(block)
    _current.set(block)
    return block


def leave(block: Block) -> None:
    """Close a block, perhaps in another context than the one that entered it."""
    with _lock:
        _blocks[block.frame].remove(block)
        if not _blocks[block.frame]:
            del _blocks[block.frame]
    block.frame = None  # it has all local variables of the application's function
    if _current.get() is block:
        _current.set(block.outer)


def current() -> Block | None:
    """Find the innermost open block that this code runs in."""
    inherited, nearest = _current.get(), _nearest()
    while inherited is not None and inherited.episode.closed and not inherited.has_ended_try:
        inherited = inherited.outer
    # A generator that is suspended leaves its block in the context; the block on the stack is then another one.
    outer = inherited
    while outer is not None and outer is not nearest:
        outer = outer.around
    return inherited if nearest is None or outer is nearest else nearest


def _nearest() -> Block | None:
    """Find the innermost open block on the stack."""
    frame = currentframe() if _blocks else None
    while frame is not None:
        for block in reversed(_blocks.get(frame, ())):
            if not block.episode.closed:
                return block
        frame = frame.f_back
    return None


def why_none() -> str | None:
    """Return why a call that is in no block may have been meant for one."""
    if _current.get() is not None:
        return "the trace in which this code was started has ended; wait for it inside of the block"
    with _lock:
        threads = {block.thread_id for blocks in _blocks.values() for block in blocks}
    if not threads or threading.get_ident() in threads:
        return None
    return "this thread is in no trace, but others are; to record it, enter `with episode:` in this thread too"


@contextmanager
def unrecorded() -> Generator[None]:
    """Record none of the calls in a block: they are as those of the plain client.

    Tasks and `asyncio.to_thread` inherit it, and threads of an executor do not.
    """
    before = _is_silent.get()
    _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.set(before)


def is_unrecorded() -> bool:
    return _is_silent.get()


def lose_call() -> None:
    """Count a call that is in no trace for each trace that is open meanwhile."""
    with _lock:
        episodes = {block.episode for blocks in _blocks.values() for block in blocks}
    for episode in episodes:
        episode.missed += 1


def caller() -> FrameType | None:
    """Return the frame that enters or leaves a context manager."""
    frame = currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _MANAGERS:
        frame = frame.f_back
    return frame
