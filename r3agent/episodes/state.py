"""State of the graph: plain JSON, so that any checkpointer, store or HTTP API can hold it.

Nodes parse it into records (`Task`, `Span`) and return their JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias

from typing_extensions import TypedDict  # typing.TypedDict has no JSON Schema before Python 3.12

from r3agent.errors import ConfigError
from r3agent.records.trajectory import TASK_EXAMPLE, Label, Span, Task, Trajectory, new_id

Json: TypeAlias = dict[str, Any]


def merge_spans(left: list[Json], right: list[Json]) -> list[Json]:
    """Merge spans by `span_id`: the right one wins, and the order of first appearance is kept.

    Idempotent: applying an update again, in a retried node or a resumed thread, duplicates no span.
    """
    merged = {span["span_id"]: span for span in left}
    merged.update((span["span_id"], span) for span in right)
    return list(merged.values())


class EpisodeInput(TypedDict):
    task: Json
    """A `Task` as JSON: `{"id": ..., "messages": [...], "tools": [...], "info": {...}}`."""


class EpisodeOutput(TypedDict):
    answer: str
    """Text of the try that passed, or else of the last try, without the thinking."""
    passed: bool | None
    """Verdict on the answer; `None` while it is pending."""
    trajectory: Json
    """A `Trajectory` as JSON, set when the episode ends; `Trajectory.model_validate(...)` parses it."""


class EpisodeState(EpisodeInput, EpisodeOutput):
    spans: Annotated[list[Json], merge_spans]
    """Spans of all episodes of the thread, in order; each `attempt` begins a new episode."""
    frontier: list[str]
    """Ids of the failed tries that may be retried: `verify` sets them, the router and the other nodes read them."""


class SpanSlot(NamedTuple):
    """Position in the tree of a span that is about to be sampled."""

    label: Label
    parent_id: str | None
    choice: int
    """Index of the choice in its request."""
    span_id: str

    @classmethod
    def siblings(cls, n: int, label: Label, parent_id: str | None) -> list[SpanSlot]:
        """Make the slots of the `n` spans that one request samples."""
        return [cls(label, parent_id, choice, new_id()) for choice in range(n)]


class TokenDelta(TypedDict):
    """Delta of a span's text; a graph built with `stream=True` yields these in `stream_mode="custom"`."""

    label: Label
    parent_id: str | None
    choice: int
    """Index of the choice in its request."""
    span_id: str
    """Id that the complete span has in the trajectory."""
    delta: str


def task_of(state: EpisodeState) -> Task:
    """Read the task of the state.

    Raises:
        ConfigError: the input has no task, or an invalid one.
    """
    if "task" not in state:  # LangGraph drops all other keys of the input
        raise ConfigError(f'the input has no "task", and nothing else of it is read; pass {TASK_EXAMPLE}')
    return Task.of(state["task"])


def tree_of(state: EpisodeState) -> Trajectory:
    """Build the trajectory so far; its id is the id of its first span, so it never changes."""
    spans = state["spans"]
    root = max(i for i, span in enumerate(spans) if span["label"] == "attempt")
    return Trajectory.model_validate(
        {"trajectory_id": spans[root]["span_id"], "task": state["task"], "spans": spans[root:]}
    )


def earlier_episodes(state: EpisodeState, tree: Trajectory) -> int:
    """Count the episodes of the thread before `tree`, so that a task that is asked again is not drawn alike."""
    return sum(span["label"] == "attempt" for span in state.get("spans", ())) - (tree.attempt is not None)


def frontier_of(state: EpisodeState, tree: Trajectory) -> list[Span]:
    """List the failed tries that may be retried."""
    return [span for span in tree.spans if span.span_id in state["frontier"]]
