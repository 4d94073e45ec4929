"""The record: a trajectory is a tree of spans. What they earn, and which are siblings, is in `credit.py`.

    task -- attempt ✗ --+-- reflect --+-- retry ✓
                        |             +-- retry ✗
                        +-- retry ✗                  no reflection above it: the blind control

Everything here is frozen, versioned and JSON-safe. Nothing here calls a model or touches a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from r3agent.records.generation import Capability, Generation, Verdict
from r3agent.records.record import Record, VersionedRecord, new_id
from r3agent.records.task import TASK_EXAMPLE, Message, Task

__all__ = [
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
    "Verdict",
    "VersionedRecord",
    "mean_success",
    "new_id",
]

Label: TypeAlias = Literal["attempt", "reflect", "retry"]


class Span(Generation):
    """A generation with its place in the tree."""

    span_id: str = Field(default_factory=new_id)
    parent_id: str | None = None
    label: Label
    request: tuple[Message, ...] = ()
    """Messages that asked for this span, appended to the parent's conversation."""
    standalone: bool = False
    """`request` is all that was sent: it does not go on with the parent's conversation."""
    verdict: Verdict | None = None
    """Verdict on an attempt or a retry, once verified."""

    @property
    def passed(self) -> bool | None:
        return None if self.verdict is None else self.verdict.passed


class EpisodeError(Record):
    """Error that ended an episode early: data, never a score of 0."""

    kind: str
    """The class of the exception, e.g. `VerifierError`."""
    message: str


class Trajectory(VersionedRecord):
    """One episode: a task and the tree of spans it grew."""

    schema_version: Literal[1] = 1
    trajectory_id: str = Field(default_factory=new_id)
    task: Task
    sample: int = 0
    """Number of this episode among several of the same task."""
    spans: tuple[Span, ...] = ()
    """Parents before children."""
    error: EpisodeError | None = None
    verifier: str = ""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    metadata: dict[str, Any] = {}

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
        """A copy with other fields; `model_copy` would carry over the walks that were cached for the old spans."""
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
        """Spans from the root to `span`, both included."""
        path = [span]
        while (above := self.parent(path[-1])) is not None:
            path.append(above)
        return path[::-1]

    def prompt(self, span: Span) -> list[Message]:
        """The conversation that `span` answered."""
        messages = list(self.task.messages)
        for step in self.path(span):
            messages = [*([] if step.standalone else messages), *step.request]
            if step is not span:
                messages.append(step.turn)
        return messages

    @property
    def attempt(self) -> Span | None:
        return next((s for s in self.spans if s.label == "attempt"), None)

    def is_blind(self, span: Span) -> bool:
        """A retry that no reflection led to."""
        above = self.parent(span)
        return span.label == "retry" and above is not None and above.label != "reflect"

    @property
    def answer(self) -> Span | None:
        """The span to hand to a user: the first that passed, else the last that tried."""
        tries = [s for s in self.spans if s.label != "reflect"]
        return next((s for s in tries if s.passed), tries[-1] if tries else None)

    @property
    def passed(self) -> bool | None:
        answer = self.answer
        return None if answer is None else answer.passed

    @property
    def policy_versions(self) -> tuple[str | None, ...]:
        """The versions that answered, in order of first answer; more than one: the episode lived through a deploy."""
        return tuple(dict.fromkeys(span.policy_version for span in self.spans))


def mean_success(spans: Iterable[Span]) -> float | None:
    """Share of passed spans among those with a verdict; `None` when there is none."""
    verdicts = [s.verdict.passed for s in spans if s.verdict is not None]
    return fmean(verdicts) if verdicts else None
