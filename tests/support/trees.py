"""Trees of spans: by hand, and as a hypothesis strategy."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from r3agent.records.trajectory import EpisodeError, Generation, Label, Span, Task, Trajectory, Verdict

TASK = Task(id="t", messages=({"role": "user", "content": "2 + 2?"},))


def span(label: Label, parent: Span | None = None, passed: bool | None = None, **fields: Any) -> Span:
    return Span(
        **{"text": label, "model": "m", **fields},
        label=label,
        parent_id=parent and parent.span_id,
        verdict=None if passed is None else Verdict(passed=passed, score=float(passed)),
    )


def tree(*spans: Span) -> Trajectory:
    return Trajectory(task=TASK, spans=spans)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=3)
token_ids = st.lists(st.integers(0, 200_000), min_size=1, max_size=6)
tasks = st.builds(Task, messages=st.lists(json_objects, min_size=1, max_size=3), info=json_objects)


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    ids = draw(token_ids)
    logprobs = st.lists(st.floats(-50, 0), min_size=len(ids), max_size=len(ids))
    exact = {"prompt_token_ids": draw(token_ids), "token_ids": ids, "logprobs": draw(logprobs)}
    recorded = draw(st.sampled_from([{**exact, "capability": "trainable-exact"}, exact, {}]))
    return Generation(text=draw(st.text()), model=draw(st.text()), sampling=draw(json_objects), **recorded)


@st.composite
def trees(draw: st.DrawFn, max_spans: int = 10) -> Trajectory:
    """Any tree of the loop's shape: reflections and retries under tries, retries under reflections."""
    grown: list[Span] = []
    for pick, reflects, passed in draw(
        st.lists(st.tuples(st.integers(0, 99), st.booleans(), st.none() | st.booleans()), max_size=max_spans)
    ):
        parent = grown[pick % len(grown)] if grown else None
        label: Label = "attempt" if parent is None else "reflect" if reflects and parent.label != "reflect" else "retry"
        request = ({"role": "user", "content": f"{label} {pick % 2}"},) if parent else ()
        grown.append(span(label, parent, None if label == "reflect" else passed, text=f"{len(grown)}", request=request))
    return tree(*grown)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Any small tree with any content."""
    shape = draw(trees(max_spans=4))
    spans = tuple(s.model_copy(update=dict(draw(generations()))) for s in shape.spans)
    error = draw(st.none() | st.builds(EpisodeError, kind=st.text(), message=st.text()))
    return Trajectory(task=draw(tasks), spans=spans, error=error, metadata=draw(json_objects))
