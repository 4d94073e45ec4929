"""State of the graph: plain JSON, so that any checkpointer, store or HTTP API can carry it.

Nodes read it as records (`Task`, `Span`) and write it as their JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias

from typing_extensions import TypedDict  # that of typing has no JSON Schema before Python 3.12

from r3agent.errors import ConfigError
from r3agent.records.trajectory import TASK_EXAMPLE, Label, Span, Task, Trajectory, new_id

Json: TypeAlias = dict[str, Any]


def merge_spans(left: list[Json], right: list[Json]) -> list[Json]:
    """Union by `span_id`, the right one winning and the order of first sight kept.

    Idempotent: an update that is applied again, by a retried node or a resumed thread, duplicates no span.
    """
    merged = {span["span_id"]: span for span in left}
    merged.update((span["span_id"], span) for span in right)
    return list(merged.values())


class EpisodeInput(TypedDict):
    task: Json
    """A `Task` as JSON: `{"id": ..., "messages": [...], "tools": [...], "info": {...}}`."""


class EpisodeOutput(TypedDict):
    answer: str
    """Text of the try that passed, else of the last one; without its thinking."""
    passed: bool | None
    """Verdict on the answer; `None`: the verifier does not know yet."""
    trajectory: Json
    """A `Trajectory` as JSON; `Trajectory.model_validate(...)` gives the record. Written when the episode ends."""


class EpisodeState(EpisodeInput, EpisodeOutput):
    spans: Annotated[list[Json], merge_spans]
    """Spans of all episodes of the thread, one after the other; an `attempt` begins a new one."""
    frontier: list[str]
    """Ids of the failed tries that may be tried again: `verify` decides it, the router and the nodes follow it."""


class SpanSlot(NamedTuple):
    """Position in the tree of a span that is about to be sampled."""

    label: Label
    parent_id: str | None
    choice: int
    """Number among the siblings that one request samples."""
    span_id: str

    @classmethod
    def siblings(cls, n: int, label: Label, parent_id: str | None) -> list[SpanSlot]:
        """Make the slots of the `n` spans that one request samples."""
        return [cls(label, parent_id, choice, new_id()) for choice in range(n)]


class TokenDelta(TypedDict):
    """Piece of a span's text, which `stream_mode="custom"` yields of a graph built with `stream=True`."""

    label: Label
    parent_id: str | None
    choice: int
    """Number among the siblings that one request samples."""
    span_id: str
    """Id of the span in the trajectory, once it is complete."""
    delta: str


def task_of(state: EpisodeState) -> Task:
    """Read the task of the state.

    Raises:
        ConfigError: the graph was given none, or none that can be read.
    """
    if "task" not in state:  # whatever else the input has, LangGraph has left out
        raise ConfigError(f'the input has no "task", and nothing else of it is read; pass {TASK_EXAMPLE}')
    return Task.of(state["task"])


def tree_of(state: EpisodeState) -> Trajectory:
    """Build the trajectory so far; its id is that of its first span, the same however much has grown."""
    spans = state["spans"]
    root = max(i for i, span in enumerate(spans) if span["label"] == "attempt")
    return Trajectory.model_validate(
        {"trajectory_id": spans[root]["span_id"], "task": state["task"], "spans": spans[root:]}
    )


def frontier_of(state: EpisodeState, tree: Trajectory) -> list[Span]:
    """List the failed tries that may be tried again."""
    return [span for span in tree.spans if span.span_id in state["frontier"]]
