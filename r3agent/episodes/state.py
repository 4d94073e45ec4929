"""The graph's state and context: plain JSON, so that any checkpointer, store or HTTP API can carry it.

Nodes read it as records (`Task`, `Span`) and write it as their JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import Field, ValidationError
from typing_extensions import TypedDict  # that of typing has no JSON Schema before Python 3.12

from r3agent._util.messages import explain
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.records.trajectory import TASK_EXAMPLE, Label, Record, Span, Task, Trajectory, new_id

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
    """`None`: the verifier does not know yet."""
    trajectory: Json
    """A `Trajectory` as JSON; `Trajectory.model_validate(...)` gives the record. Written when the episode ends."""


class EpisodeState(EpisodeInput, EpisodeOutput):
    spans: Annotated[list[Json], merge_spans]
    """Of all episodes of the thread, one after the other; an `attempt` begins a new one."""
    frontier: list[str]
    """Ids of the failed tries that may be tried again: `verify` decides it, the router and the nodes follow it."""


class EpisodeContext(Record):
    """What one run sets otherwise than `build_graph` did; what is left out stays as it was built.

    `graph.invoke(input, context={"max_attempts": 3})`, an instance does as well; in LangGraph Studio it is a form. A
    larger graph passes its own context on to the graphs in it, so in one that is embedded only an instance counts.

    Raises:
        ConfigError: a setting is unknown or does not fit.
    """

    max_attempts: int | None = Field(default=None, ge=1)
    """Tries on one path, the first included."""
    reflections: int | None = Field(default=None, ge=0)
    """Drawn of each failed try; 0 retries without reflecting."""
    retries: int | None = Field(default=None, ge=1)
    """Drawn after each reflection."""
    blind_retries: int | None = Field(default=None, ge=0)
    """Drawn of each failed try without a reflection, as a control."""
    sampling: Sampling | None = None
    """Of attempts and retries, as a whole; of reflections too, where nothing says otherwise."""
    reflect_sampling: Sampling | None = None
    """Of reflections, as a whole."""

    def __init__(self, **settings: Any) -> None:
        # LangGraph makes it of a caller's JSON, and a caller should read one line of what to change.
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(
                f"{explain(error, EpisodeContext, root='context')}; change it, or leave it out for what the graph was "
                "built with"
            ) from None

    @property
    def given(self) -> Json:
        return {name: value for name, value in self if value is not None}


class Place(NamedTuple):
    """Where a span that is about to be drawn will stand."""

    label: Label
    parent_id: str | None
    choice: int
    """Its number among the siblings that one request draws."""
    span_id: str

    @classmethod
    def several(cls, n: int, label: Label, parent_id: str | None) -> list[Place]:
        return [cls(label, parent_id, choice, new_id()) for choice in range(n)]


class Delta(TypedDict):
    """A piece of a span's text; what `stream_mode="custom"` yields of a graph built with `stream=True`."""

    label: Label
    parent_id: str | None
    choice: int
    """Its number among the siblings that one request draws."""
    span_id: str
    """The span's in the trajectory, once it is complete."""
    delta: str


def task_of(state: EpisodeState) -> Task:
    """
    Raises:
        ConfigError: the graph was given none, or none that can be read.
    """
    if "task" not in state:  # whatever else the input has, LangGraph has left out
        raise ConfigError(f'the input has no "task", and nothing else of it is read; pass {TASK_EXAMPLE}')
    return Task.of(state["task"])


def tree_of(state: EpisodeState) -> Trajectory:
    """What the episode has grown so far; its id is that of its first span, the same however much has grown."""
    spans = state["spans"]
    root = max(i for i, span in enumerate(spans) if span["label"] == "attempt")
    return Trajectory.model_validate(
        {"trajectory_id": spans[root]["span_id"], "task": state["task"], "spans": spans[root:]}
    )


def frontier_of(state: EpisodeState, tree: Trajectory) -> list[Span]:
    return [span for span in tree.spans if span.span_id in state["frontier"]]
