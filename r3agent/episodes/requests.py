"""Request for the children of a span: the conversation, the messages that it appends, and the sampling settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from r3agent.episodes.state import SpanSlot
from r3agent.policy import Sampling
from r3agent.records.prompts import NOT_RUN
from r3agent.records.reply import text_of
from r3agent.records.trajectory import Label, Message, Span, Trajectory, Verdict

MAX_CHARS = 2000
"""Maximum number of characters of each text of a model call that the last conversation of a try lacks."""


class Refusal(NamedTuple):
    """Reason why there is no generation."""

    finish_reason: str
    why: str


class SpanRequest(NamedTuple):
    """Request for reflections on a failed try, for retries, or for the first try."""

    label: Label
    parent: Span | None
    messages: list[Message]
    """The whole conversation."""
    appended: tuple[Message, ...]
    """The part of it after the parent's conversation."""
    sampling: Sampling | None

    def slots(self, n: int) -> list[SpanSlot]:
        """Make the slots of `n` spans."""
        return SpanSlot.siblings(n, self.label, self.parent and self.parent.span_id)

    @property
    def obstacle(self) -> Refusal | None:
        """Return why the request need not be sent; `None` if it can be.

        A conversation after one that was refused would be refused too, and after a reflection that was cut off before
        any answer there is nothing to retry with.
        """
        parent = self.parent
        if parent is None:
            return None
        if parent.refused:
            reason = str(parent.finish_reason)
            return Refusal(reason, f"{reason}: the conversation was refused: so was its parent's")
        if parent.label == "reflect" and parent.unanswered:
            return Refusal("no_reflection", f"no whole reflection: {parent.unfinished}")
        return None

    def refused(self, slot: SpanSlot, refusal: Refusal) -> Span:
        """Make the span of a generation that does not exist, and fail it if it is a try."""
        assert self.parent is not None  # the refusal of a task is an error
        return Span(
            span_id=slot.span_id,
            parent_id=slot.parent_id,
            label=slot.label,
            request=self.appended,
            text="",
            model=self.parent.model,
            policy_version=self.parent.policy_version,
            sampling={} if self.sampling is None else self.sampling.model_dump(mode="json"),
            finish_reason=refusal.finish_reason,
            completion_tokens=0,
            capability_note=f"no generation: {refusal.finish_reason}",
            verdict=Verdict.failed(refusal.why) if slot.label == "retry" else None,
        )


def is_blind(label: Label, parent: Span | None) -> bool:
    return label == "retry" and parent is not None and parent.label != "reflect"


def appended_after(tree: Trajectory, parent: Span, prompt: str) -> tuple[Message, ...]:
    """Return the messages that ask for a child of `parent`.

    OpenAI's API requires an answer to every tool call before the conversation continues. What the last conversation of
    a try of several steps lacks is told in words.
    """
    calls: Sequence[Any] = parent.turn.get("tool_calls", ())
    unrun = [{"role": "tool", "tool_call_id": call.get("id", ""), "content": NOT_RUN} for call in calls]
    rest = "" if parent.label == "reflect" else _rest_of_try(tree, parent)
    return (*unrun, {"role": "user", "content": f"{rest}{prompt}"})


def _rest_of_try(tree: Trajectory, last: Span) -> str:
    """Describe the steps that are not in the conversation of the last one, and an answer that is not its text."""
    a_try = tree.try_of(last)
    seen, step = {last.span_id}, last
    while not step.standalone and (above := tree.parent(step)) is not None:
        seen.add((step := above).span_id)
    others = [step for step in a_try.steps if step.span_id not in seen and not _contains(tree, last, step)]
    texts = [
        f"Another model call of this try: {_short(_asked(step))}\nIts answer: {_short(step.text)}" for step in others
    ]
    if last.answer is not None:
        texts.append(f"The answer that you gave: {_short(last.answer)}")
    return "".join(f"{text}\n\n" for text in texts)


def _contains(tree: Trajectory, last: Span, step: Span) -> bool:
    """Return True if a whole conversation that was sent anew has the answer of an earlier step."""
    answers = [text_of(m.get("content")) for m in tree.prompt(last) if m.get("role") == "assistant"]
    return bool(step.text) and step.text in answers


def _asked(step: Span) -> str:
    return text_of(step.request[-1].get("content")) if step.request else ""


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ..."
