"""Span and try: a generation with its place in the tree, and the spans that make one attempt or one retry."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from r3agent.records.generation import Generation, Unfinished, Verdict, mended
from r3agent.records.record import StoredRecord, new_id
from r3agent.records.task import Message

Label: TypeAlias = Literal["attempt", "reflect", "retry"]

OTHER = "another model"
"""Purpose of an agent's call that asked a model other than the policy."""


class EpisodeError(StoredRecord):
    """Error that ended an episode or a try early; it is recorded, never scored 0."""

    kind: str
    """Class of the exception, e.g. `VerifierError`."""
    message: str


def _is_none(value: object) -> bool:
    return value is None


class Span(Generation):
    """A generation with its place in the tree."""

    span_id: str = Field(default_factory=new_id)
    parent_id: str | None = None
    label: Label
    request: tuple[Message, ...] = ()
    """Messages that were appended to the parent's conversation to request this span."""
    standalone: bool = False
    """True if `request` is the whole prompt and does not continue the parent's conversation."""
    verdict: Verdict | None = None
    """Verdict on an attempt or a retry, once verified; that of a try of several steps is on the last."""
    # Releases without the fields below refuse them, so they are left out where they say nothing.
    answer: str | None = Field(default=None, exclude_if=_is_none)
    """Answer of the try, on its last span, if an agent gave another than the text of that span."""
    error: EpisodeError | None = Field(default=None, exclude_if=_is_none)
    """Error that ended the try, on its last span; such a try has no verdict."""
    purpose: str | None = Field(default=None, exclude_if=_is_none)
    """Purpose of a call that is not the policy's, such as "router"; never trained on."""

    @classmethod
    def of(cls, generation: Generation, **place: Any) -> Span:
        """Place a generation in the tree, without another validation if that would change nothing.

        Args:
            place: further fields of the span, of their types.
        """
        own = vars(generation)
        is_checked = type(generation) is Generation and mended(own) is own
        fields = {**own, **place}
        return PLAIN.model_copy(update=fields) if is_checked else cls.model_validate(fields)

    @property
    def passed(self) -> bool | None:
        return None if self.verdict is None else self.verdict.passed


PLAIN = Span(text="", model="", label="attempt")
"""Span to copy for one whose fields have been checked."""


class Try(NamedTuple):
    """One attempt or one retry: a completion, or the steps of an agent."""

    steps: tuple[Span, ...]
    """Spans in the order of the record; the verdict is on the last."""
    is_blind: bool
    """True for a retry without a reflection above it."""

    @property
    def first(self) -> Span:
        return self.steps[0]

    @property
    def last(self) -> Span:
        return self.steps[-1]

    @property
    def label(self) -> Label:
        return self.first.label

    @property
    def is_aside(self) -> bool:
        """Return True for calls beside the tries of an episode, such as a router's, that nobody judged."""
        judged = (self.last.verdict, self.last.answer, self.last.error)
        return all(step.purpose not in (None, OTHER) for step in self.steps) and judged == (None, None, None)

    @property
    def asked_policy(self) -> bool:
        """Return True if a step is a call of the policy; without a whole reflection, nobody is asked."""
        return any(step.purpose is None and step.unfinished != "no_reflection" for step in self.steps)

    @property
    def verdict(self) -> Verdict | None:
        """Last verdict on a step; one on an earlier step was given before the agent went on."""
        return next((step.verdict for step in reversed(self.steps) if step.verdict is not None), None)

    @property
    def passed(self) -> bool | None:
        return None if (verdict := self.verdict) is None else verdict.passed

    @property
    def error(self) -> EpisodeError | None:
        return self.last.error

    @property
    def unfinished(self) -> Unfinished | None:
        """Return why the try has no whole answer; `None` if it has one, or an agent gave one."""
        return None if self.last.answer is not None else self.last.unfinished

    @property
    def refused(self) -> bool:
        """Return True if the try ended before its last generation, which the endpoint refused."""
        return self.last.refused

    @property
    def message(self) -> Message:
        """Assistant message with the answer."""
        answer = self.last.answer
        return self.last.message if answer is None else {"role": "assistant", "content": answer}

    @property
    def messages(self) -> list[Message]:
        """Messages after the first step's prompt: answers, results of their tool calls, and what the agent added."""
        messages = [self.first.message]
        for step in self.steps[1:]:
            messages += [*([] if step.standalone else step.request), step.message]
        return messages

    @property
    def completion_tokens(self) -> int | None:
        """Number of sampled tokens; `None` if the endpoint counted none."""
        counts = [step.completion_tokens for step in self.steps if step.completion_tokens is not None]
        return sum(counts) if counts else None
