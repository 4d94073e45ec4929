"""Messages that an agent is given: its task and, for a retry, its failed tries with their reflections."""

from __future__ import annotations

from collections.abc import Sequence

from r3agent.episodes.requests import SpanRequest
from r3agent.records.reply import text_of
from r3agent.records.trajectory import Message, Trajectory


def agent_messages(tree: Trajectory, request: SpanRequest) -> list[Message]:
    """Return the messages of one try.

    The agent puts its own system message before them, so that one of an earlier try is taken out. Where an agent does
    not ask the model with the messages that it was given, its failed tries are told by their answers alone.
    """
    if request.parent is None:
        return list(tree.task.messages)
    first = next(span for span in tree.spans if span.label == "attempt")
    given = list(tree.task.messages)
    own = len(tree.prompt(first)) - len(given)
    is_given = own >= 0 and _same(tree.prompt(first)[own:], given) and _are_system(tree.prompt(first)[:own])
    if is_given and _same(request.messages[: own + len(given)], tree.prompt(first)):
        return request.messages[own:]
    return _in_short(tree, request)


def _in_short(tree: Trajectory, request: SpanRequest) -> list[Message]:
    """Return the task, and the answer of each failed try with its reflection and the prompt of the next."""
    assert request.parent is not None  # the first try has the task alone
    messages, prompt = list(tree.task.messages), request.appended[-1]
    for span in tree.path(request.parent):
        if span.label == "reflect":
            messages += [span.request[-1], {"role": "assistant", "content": span.text}]
        elif span == (a_try := tree.try_of(span)).last:
            again = [prompt] if messages[-1]["role"] == "assistant" else []
            messages += [*again, {"role": "assistant", "content": text_of(a_try.message.get("content"))}]
    return [*messages, prompt]


def _are_system(messages: Sequence[Message]) -> bool:
    return all(message.get("role") in ("system", "developer") for message in messages)


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return [_content(message) for message in some] == [_content(message) for message in others]


def _content(message: Message) -> tuple[object, str]:
    return message.get("role"), text_of(message.get("content"))
