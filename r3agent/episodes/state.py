"""State of the graph: plain JSON, so that any checkpointer, store or HTTP API can hold it.

Nodes parse it into records (`Task`, `Span`) and return their JSON. An application may edit it with `update_state`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypeAlias, cast

from pydantic import ValidationError
from typing_extensions import TypedDict  # typing.TypedDict has no JSON Schema before Python 3.12

from r3agent._util.messages import did_you_mean, explain, shorten
from r3agent.episodes.course import Course
from r3agent.errors import ConfigError
from r3agent.records.trajectory import RECORDED, TASK_EXAMPLE, Label, Span, Task, Trajectory, new_id
from r3agent.verifiers import Answer

Json: TypeAlias = dict[str, Any]


def merge_spans(left: list[Json], right: list[Json]) -> list[Json]:
    """Merge spans by `span_id`: fields of the right one win, and the order of first appearance is kept.

    Idempotent: applying an update again, in a retried node or a resumed thread, duplicates no span. Those of earlier
    episodes are dropped, so that a thread that is used again and again does not grow; its old checkpoints have them.

    Raises:
        ConfigError: an application's edit has a span without an id, or a part of one that does not exist.
    """
    merged = {span["span_id"]: span for span in left}
    for span in right:
        span_id = _id_of(span)
        if span_id not in merged and (missing := [name for name in ("label", "text", "model") if name not in span]):
            raise ConfigError(
                f"the state was edited: there is no span {span_id!r}, {did_you_mean(span_id, merged)}; "
                f"a new one needs {', '.join(missing)}"
            )
        merged[span_id] = {**merged.get(span_id, {}), **span}
    return _last_episode(list(merged.values()), right)


def _last_episode(spans: list[Json], newest: list[Json]) -> list[Json]:
    """Return the spans of the episode whose root is the last in `newest`, or else in `spans`."""
    last = next((span["span_id"] for span in (*reversed(newest), *reversed(spans)) if _is_root(span)), None)
    root, roots = None, dict[str, str | None]()
    for span in spans:
        root = span["span_id"] if _is_root(span) else roots.get(str(span.get("parent_id")), root)
        roots[span["span_id"]] = root
    return [span for span in spans if roots[span["span_id"]] == last]


def _id_of(span: object) -> str:
    span_id: object = cast(Json, span).get("span_id") if isinstance(span, dict) else None
    if not isinstance(span_id, str):
        raise ConfigError(f"spans: {shorten(span)} has no span_id; give the id of the span to edit, or a new one")
    return span_id


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


class Lineage(TypedDict):
    """Identity of an episode, kept from node to node, so that a branch in the history of a thread is noticed."""

    root: str | None
    """Id of the episode's first span, from `verify` on."""
    trajectory_id: str | None
    """Id of a branch; `None` for that of the first span."""
    parent_id: str | None
    """Id of the trajectory that a branch left."""
    step: int
    """LangGraph's number of the last node's step; going back in the history or editing the state is a step too."""
    task: str
    """Hash of the task."""
    asked: str
    """Hash of the part of the task that the policy sees."""
    spans: dict[str, list[str]]
    """Hashes of each span's answer, prompt and verdict, and the verdict's `passed`, as the nodes left them."""
    began: NotRequired[float]
    """Time of the beginning of the episode, in seconds since the epoch."""
    earlier: NotRequired[int]
    """Number of earlier episodes of the thread, so that a task that is asked again is not drawn alike."""
    recorded: NotRequired[list[str]]
    """Ids of the spans of a recorded episode that this one began with."""
    output: NotRequired[str]
    """Hash of the output's answer and `passed`, as `verify` left them."""


class EpisodeState(EpisodeInput, EpisodeOutput):
    spans: Annotated[list[Json], merge_spans]
    """Spans of the last episode of the thread, in order; an `attempt` without a parent begins a new episode."""
    frontier: list[str]
    """Ids of the failed tries that may be retried: `verify` sets them, the router and the other nodes read them."""
    lineage: NotRequired[Lineage]
    """Identity of the episode, which the nodes keep."""


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


def count_episodes(state: EpisodeState) -> int:
    """Count the episodes of the thread, including the last; threads of older releases have the spans of all."""
    lineage = state.get("lineage") or {}
    return lineage.get("earlier", 0) + sum(map(_is_root, state.get("spans") or ()))


def _is_root(span: Json) -> bool:
    """Return True for the first span of an episode; the other steps of its first try are attempts too."""
    return span.get("label") == "attempt" and span.get("parent_id") is None


def spans_of(state: EpisodeState) -> list[Json]:
    """Return the spans of the last episode of the thread."""
    spans = state.get("spans") or []
    if not any(_id_of(span) and _is_root(span) for span in spans):
        raise ConfigError("the state has no attempt: run the graph from its start, or add a span with that label")
    return _last_episode(spans, [])


def tree_of(state: EpisodeState) -> Trajectory:
    """Build the trajectory so far; its id is that of its first span, unless the episode is a branch of another.

    Raises:
        ConfigError: there is no attempt yet, or an edit of the state left no valid tree.
    """
    spans, lineage = spans_of(state), state.get("lineage") or {}
    named: Json = {
        "trajectory_id": lineage.get("trajectory_id") or spans[0]["span_id"],
        "parent_id": lineage.get("parent_id"),
        "metadata": {RECORDED: recorded} if (recorded := lineage.get("recorded")) else {},
    }
    try:
        return Trajectory.model_validate({**named, "task": task_of(state), "spans": spans})
    except ValidationError as error:
        raise ConfigError(f"the state was edited: {explain(error, Trajectory)}; edit it again") from None


def frontier_of(state: EpisodeState, tree: Trajectory) -> list[Span]:
    """List the failed tries that may be retried.

    Raises:
        ConfigError: an edit of the state names a span that is none of the episode's.
    """
    ids = state.get("frontier") or []
    if unknown := set(ids) - {span.span_id for span in tree.spans}:
        raise ConfigError(f"frontier = {shorten(ids)}: {', '.join(sorted(unknown))} is no span of this episode")
    return [span for span in tree.spans if span.span_id in ids and not span.passed]


def course_of(state: EpisodeState, at: Literal["beginning", "growth", "verification"]) -> Course:
    """Return the course of the episode so far.

    Args:
        at: step that it is read for: at the beginning there is only the task, and only for growth a frontier.

    Raises:
        ConfigError: there is no valid task, no attempt yet, or an edit of the state left no valid tree or frontier.
    """
    lineage: Any = state.get("lineage") or {}
    tree = Trajectory(task=task_of(state)) if at == "beginning" else tree_of(state)
    frontier = frontier_of(state, tree) if at == "growth" else ()
    return Course(tree=tree, frontier=frontier, began=lineage.get("began"), earlier=lineage.get("earlier", 0))


def update_of(before: Course, after: Course, *, is_verified: bool) -> Json:
    """Return the part of the state that a step changed.

    Args:
        is_verified: the step was `verify`, which also sets the output and the frontier.
    """
    known = set(map(id, before.tree.spans))
    tree = after.tree
    update: Json = {"spans": [span.model_dump(mode="json") for span in tree.spans if id(span) not in known]}
    if tree.task is not before.tree.task:
        update["task"] = tree.task.model_dump(mode="json")
    if is_verified:
        final = tree.final or tree.tries[0]
        frontier = [span.span_id for span in after.frontier]
        update |= {"answer": str(Answer.of(final.message)), "passed": final.passed, "frontier": frontier}
    if after.ended:
        update["trajectory"] = tree.model_dump(mode="json")
    return update
