"""Record of an episode: a trajectory is a tree of spans. `credit.py` defines rewards and siblings.

    task -- attempt ✗ --+-- reflect --+-- retry ✓
                        |             +-- retry ✗
                        +-- retry ✗                  no reflection above it: the blind control

All records are frozen, versioned and JSON-safe. This module calls no model and reads or writes no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from os import PathLike
from statistics import fmean
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from r3agent._util.messages import shorten
from r3agent.errors import ArgumentError
from r3agent.records.generation import Capability, Generation, Verdict
from r3agent.records.record import Record, VersionedRecord, new_id
from r3agent.records.span import EpisodeError, Label, Span, Try
from r3agent.records.task import TASK_EXAMPLE, Message, Task

__all__ = [
    "CONTROL",
    "HELD_OUT",
    "LINE_CHECKSUM",
    "RECORDED",
    "SOURCE",
    "SPLIT",
    "TASK_EXAMPLE",
    "Capability",
    "EpisodeError",
    "Generation",
    "Label",
    "Message",
    "Record",
    "Span",
    "Task",
    "Trajectory",
    "Try",
    "Verdict",
    "VersionedRecord",
    "each_trajectory",
    "mean_success",
    "new_id",
]

SOURCE, SPLIT, EPISODE = "source", "split", "episode"
"""Metadata keys of a trajectory: the source of its task, the split that the task was drawn from, and the name under
which a gateway recorded it."""

RECORDED = "recorded_spans"
"""Metadata key of a branch of a recorded episode: ids of the spans that it took from there and did not sample."""

CONTROL = "control"
"""Metadata key of a control branch: the kind of reflection that stands in place of the policy's own."""

AT_ONCE = "reflections_at_once"
"""Key of `Trajectory.metadata`: size of the parts in which groups were drawn, if the outcomes of one decided on the
next. The reflections of the first parts alone are an even sample of those that the policy writes."""

LINE_CHECKSUM = "line_crc32"
"""Metadata key that a stored line ends with; a record that is read from it has none."""

HELD_OUT = ("gate", "test")
"""Splits whose tasks are never trained on."""


class Trajectory(VersionedRecord):
    """One episode: a task and its tree of spans."""

    schema_version: Literal[1] = 1
    trajectory_id: str = Field(default_factory=new_id)
    parent_id: str | None = None
    """Id of the trajectory that this one branched off, by time travel, an edit of the graph's state, or `branch`; the
    two have the spans before the branch in common."""
    task: Task
    sample: int = 0
    """Index of this episode among several of the same task."""
    spans: tuple[Span, ...] = ()
    """Spans of the tree, parents before children."""
    error: EpisodeError | None = None
    verifier: str = ""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    metadata: dict[str, Any] = {}

    @field_validator("metadata")
    @classmethod
    def _without_checksum(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in metadata.items() if k != LINE_CHECKSUM} if LINE_CHECKSUM in metadata else metadata

    @model_validator(mode="after")
    def _is_tree(self) -> Trajectory:
        seen: set[str] = set()
        for span in self.spans:
            if span.span_id in seen:
                raise ValueError(f"span {span.span_id} appears twice")
            if span.parent_id is not None and span.parent_id not in seen:
                raise ValueError(f"span {span.span_id} comes before its parent {span.parent_id}, or has none")
            seen.add(span.span_id)
        return self

    def changed(self, **fields: Any) -> Trajectory:
        """Copy with changed fields; `model_copy` would keep the tree walks that are cached for the old spans."""
        return Trajectory(**{**dict(self), **fields})

    # ---- tree walks ----

    @cached_property
    def _by_id(self) -> dict[str, Span]:
        return {span.span_id: span for span in self.spans}

    @cached_property
    def _children(self) -> dict[str | None, list[Span]]:
        children: dict[str | None, list[Span]] = {}
        for span in self.spans:
            children.setdefault(span.parent_id, []).append(span)
        return children

    def parent(self, span: Span) -> Span | None:
        return None if span.parent_id is None else self._by_id[span.parent_id]

    def children(self, span: Span, label: Label | None = None) -> list[Span]:
        return [c for c in self._children.get(span.span_id, []) if label in (None, c.label)]

    def path(self, span: Span) -> list[Span]:
        """Return the spans from the root to `span`, including both."""
        path = [span]
        while (above := self.parent(path[-1])) is not None:
            path.append(above)
        return path[::-1]

    def position(self, span: Span | None) -> list[int]:
        """Return the index among its siblings of each span on the path to `span`: ids are random, positions are not."""
        positions: list[int] = []
        while span is not None:
            siblings = [sibling.span_id for sibling in self._children[span.parent_id]]
            positions.append(siblings.index(span.span_id))
            span = self.parent(span)
        return positions[::-1]

    def prompt(self, span: Span) -> list[Message]:
        """Return the conversation that `span` was sampled from."""
        messages = list(self.task.messages)
        for step in self.path(span):
            messages = [*([] if step.standalone else messages), *step.request]
            if step is not span:
                messages.append(step.turn)
        return messages

    # ---- tries ----

    @cached_property
    def _tries(self) -> dict[str, Try]:
        """Map the id of each span of a try to the try."""
        steps: dict[str, list[Span]] = {}
        first: dict[str, str] = {}
        for span in self.spans:
            if span.label != "reflect":
                is_step = self.is_step(span) and span.parent_id is not None
                first[span.span_id] = first[str(span.parent_id)] if is_step else span.span_id
                steps.setdefault(first[span.span_id], []).append(span)
        tries = {
            span_id: Try(tuple(spans), spans[0].label == "retry" and not self._reflected(spans[0]))
            for span_id, spans in steps.items()
        }
        return {span_id: tries[first_id] for span_id, first_id in first.items()}

    def _reflected(self, retry: Span) -> bool:
        above = self.parent(retry)
        return above is None or above.label == "reflect"

    @property
    def tries(self) -> tuple[Try, ...]:
        """Attempts and retries, in order of their first spans."""
        return self._in_order

    @cached_property
    def _in_order(self) -> tuple[Try, ...]:
        firsts = (a_try for span_id, a_try in self._tries.items() if span_id == a_try.first.span_id)
        return tuple(a_try for a_try in firsts if not a_try.is_aside)

    def try_of(self, span: Span) -> Try:
        """Return the try that a span is a step of.

        Raises:
            KeyError: it is a reflection, or no span of this trajectory.
        """
        return self._tries[span.span_id]

    def retries(self, span: Span) -> list[Try]:
        """Return the retries that follow a reflection, or, blindly, the last span of a failed try."""
        return [self.try_of(child) for child in self.children(span, "retry") if not self.is_step(child)]

    @property
    def attempt(self) -> Span | None:
        """Last span of the first try, which has its verdict."""
        first = next((a_try for a_try in self.tries if a_try.label == "attempt"), None)
        return first and first.last

    def is_step(self, span: Span) -> bool:
        """Return True for a further step of its parent's try, such as an agent's call after the result of a tool.

        The verdict on a try of several steps is on the last; what follows a verdict is another try, unless it only
        answers the calls of tools.
        """
        above = self.parent(span)
        if above is None or span.label == "reflect" or above.label != span.label:
            return False
        answers_calls = bool(span.request) and span.request[-1].get("role") == "tool"
        return above.verdict is None or answers_calls

    def is_blind(self, span: Span) -> bool:
        """Return True for a span of a retry without a reflection above it."""
        return span.label == "retry" and self.try_of(span).is_blind

    @property
    def final(self) -> Try | None:
        """Try to show to a user: the first that passed, or else the last that has an answer."""
        tries = [a_try for a_try in self.tries if not a_try.refused]
        return next((a_try for a_try in tries if a_try.passed), tries[-1] if tries else None)

    @property
    def answer(self) -> Span | None:
        """Last span of the `final` try."""
        return None if (final := self.final) is None else final.last

    @property
    def passed(self) -> bool | None:
        return None if (final := self.final) is None else final.passed

    @property
    def recorded(self) -> frozenset[str]:
        """Ids of the spans that a branch of a recorded episode began with: they are context, and earn no reward."""
        return self._recorded

    @cached_property
    def _recorded(self) -> frozenset[str]:  # pydantic takes a cached property with a public name for a field
        ids = self.metadata.get(RECORDED) if self.parent_id is not None else None
        return frozenset(map(str, cast(list[Any], ids))) if isinstance(ids, list | tuple) else frozenset()

    @property
    def control(self) -> str | None:
        """Kind of a control branch, which retries after a reflection that was not written for its failed try.

        It is never trained on. `None` for any other episode.
        """
        control = self.metadata.get(CONTROL) if self.parent_id is not None else None
        return control if isinstance(control, str) else None

    @property
    def sampled(self) -> tuple[Span, ...]:
        """Spans that this episode sampled: all of them, but for the recorded ones of a branch."""
        return tuple(span for span in self.spans if span.span_id not in self.recorded)

    @property
    def policy_versions(self) -> tuple[str | None, ...]:
        """Policy versions that answered, in order of first answer; more than one if a deploy happened meanwhile."""
        answers = (span for span in self.sampled if span.purpose is None)
        if self.recorded:  # a span that the endpoint refused has the version of its parent
            answers = (span for span in answers if not span.refused)
        return tuple(dict.fromkeys(span.policy_version for span in answers))


def each_trajectory(trajectories: Iterable[Trajectory]) -> Iterator[Trajectory]:
    """Yield the trajectories that a caller passed.

    Raises:
        ArgumentError: it is the name of a store, one trajectory, or has an item that is none.
    """
    given = cast(object, trajectories)
    if isinstance(given, str | PathLike):
        raise ArgumentError(f"trajectories = {str(given)!r}: the name of a store; pass r3agent.load({str(given)!r})")
    if isinstance(given, Trajectory):
        raise ArgumentError(f"trajectories = {shorten(given)}: one trajectory; pass a list of them")
    if not isinstance(given, Iterable):
        raise ArgumentError(f"trajectories = {shorten(given)}: not iterable; pass what r3agent.load returns")
    for i, trajectory in enumerate(trajectories):
        item = cast(object, trajectory)
        if not isinstance(item, Trajectory):
            raise ArgumentError(
                f"trajectories[{i}] = {shorten(item)}: no Trajectory; pass what r3agent.load returns, or "
                "Trajectory.model_validate(...) of its JSON"
            )
        yield trajectory


def mean_success(tries: Iterable[Span | Try]) -> float | None:
    """Compute the share of passed tries among those with a verdict; `None` if there is none."""
    verdicts = [a_try.passed for a_try in tries if a_try.passed is not None]
    return fmean(verdicts) if verdicts else None
