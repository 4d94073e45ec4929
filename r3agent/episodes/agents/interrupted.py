"""Steps of tries that were interrupted, until LangGraph runs their nodes again.

A node that is interrupted returns nothing, so that LangGraph's checkpoint has no steps of it. This process keeps them.
If another one resumes the try, they are lost, and the record of the try says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from langchain_core.runnables import RunnableConfig

from r3agent.recording.conversation import attach_step
from r3agent.records.trajectory import Span, Trajectory

MAX_TRIES = 1024
"""Maximum number of interrupted tries whose steps are kept."""

LOST = "the try was resumed: its steps before the interrupt were recorded in another process, and are not here"
"""Note of the first step of such a try."""


class InterruptedTries:
    """Steps of interrupted tries of this process, by LangGraph's namespace of the node or task that runs the try."""

    def __init__(self) -> None:
        self._steps: OrderedDict[str, tuple[Span, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, config: RunnableConfig, steps: Sequence[Span]) -> None:
        with self._lock:
            self._steps[_place(config)] = tuple(steps)
            if len(self._steps) > MAX_TRIES:
                self._steps.popitem(last=False)

    def take(self, config: RunnableConfig) -> tuple[Span, ...]:
        """Return the steps of an earlier run of the try, and forget them."""
        with self._lock:
            return self._steps.pop(_place(config), ())


def _place(config: RunnableConfig) -> str:
    configurable = config.get("configurable", {})
    return f"{configurable.get('thread_id')} {configurable.get('checkpoint_ns')}"


def without_repeated(tree: Trajectory, grown: Trajectory, parent_id: str | None, n_earlier: int) -> list[Span]:
    """Return the steps of a try that was resumed.

    A call before the interrupt that was repeated after it, because its node ran anew, is left out with what followed.

    Args:
        tree: spans before the try.
        grown: the same with its steps.
        parent_id: parent of the first step.
        n_earlier: number of steps before the interrupt.
    """
    steps = grown.spans[len(tree.spans) :]
    asked = [grown.prompt(step) for step in steps[n_earlier:]]
    repeated: set[str | None] = set()
    for step in steps[:n_earlier]:
        if step.parent_id in repeated or grown.prompt(step) in asked:
            repeated.add(step.span_id)
    if not repeated:
        return [*steps]
    kept: list[Span] = []
    for step in steps:
        if step.span_id not in repeated:
            seen = tree.changed(spans=(*tree.spans, *kept))
            place = attach_step(seen, parent_id, [one.span_id for one in kept], grown.prompt(step))
            kept.append(Span.model_validate({**dict(step), "standalone": False, "parent_id": None, **place}))
    return kept
