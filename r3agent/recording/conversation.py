"""Place of a call in the tree: the span whose conversation its messages continue.

Applications send a conversation back in another form than the server's: LangChain writes the arguments of tool calls
anew, SDKs send content as parts, or no content at all, and many drop the thinking. Messages are therefore compared by
what they say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

from r3agent.records.thinking import find_reasoning, split_thinking
from r3agent.records.trajectory import Message, Span, Trajectory

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are only text."""

Key: TypeAlias = Callable[[Message], Any]


def attach_step(
    tree: Trajectory, parent_id: str | None, steps: Sequence[str], messages: Sequence[Message]
) -> dict[str, Any]:
    """Find parent and request of a call of one try: the step that it continues, or else the last.

    Args:
        parent_id: parent of the first step.
        steps: ids of the steps so far.
    """
    if not steps:
        return attach(tree, parent_id, messages, among=[] if parent_id is None else None)
    place = attach(tree, None, messages, among=steps)
    return place if place.get("parent_id") else {"parent_id": steps[-1], "request": messages, "standalone": True}


def attach(
    tree: Trajectory, parent_id: str | None, messages: Sequence[Message], among: Collection[str] | None = None
) -> dict[str, Any]:
    """Find parent and request of a call: the parent with the longest conversation that `messages` continue.

    If they continue it word for word, the request is what comes after it. If the thinking was dropped from them, or
    tool calls are not as the graph would send them back, the request is all of them, and the span is `standalone`.

    Args:
        parent_id: the parent, if it is known.
        among: ids of the spans that can be the parent; default: all.
    """
    spans = [span for span in reversed(tree.spans) if among is None or span.span_id in among]  # of equal ones, the last
    depths, lengths = _sizes(tree)
    parents = [span for span in spans if parent_id in (None, span.span_id) and lengths[span.span_id] <= len(messages)]
    found: tuple[int, dict[str, Any]] | None = None
    for parent in sorted(parents, key=lambda span: -depths[span.span_id]):
        depth, whole = depths[parent.span_id], [*tree.prompt(parent), parent.turn]
        if found is not None and depth < found[0]:
            break
        if _continues(messages, whole, _content):
            place = {"parent_id": parent.span_id, "request": messages[len(whole) :]}
        elif _continues(messages, _as_sampled(tree, parent), _answer):
            place = {"parent_id": parent.span_id, "request": messages, "standalone": True}
        else:
            continue
        if _ids(messages[: len(whole)]) == _ids(whole):
            return place
        found = found or (depth, place)
    if found is not None:
        return found[1]
    if parent_id is None and _continues(messages, tree.task.messages, _content):
        return {"request": messages[len(tree.task.messages) :]}
    return {"parent_id": parent_id, "request": messages, "standalone": True}


def _sizes(tree: Trajectory) -> tuple[dict[str | None, int], dict[str | None, int]]:
    """Return the depth of each span, and the number of messages up to it, with it."""
    depths: dict[str | None, int] = {None: 0}
    lengths: dict[str | None, int] = {None: len(tree.task.messages)}
    for span in tree.spans:
        depths[span.span_id] = depths[span.parent_id] + 1
        lengths[span.span_id] = (0 if span.standalone else lengths[span.parent_id]) + len(span.request) + 1
    return depths, lengths


def _continues(messages: Sequence[Message], conversation: Sequence[Message], key: Key) -> bool:
    pairs = zip(messages, conversation, strict=False)
    return len(messages) >= len(conversation) and all(m == c or key(m) == key(c) for m, c in pairs)


def _as_sampled(tree: Trajectory, span: Span) -> list[Message]:
    """Return the conversation up to `span`, with tool calls that are not valid as they were sampled."""
    messages = list(tree.task.messages)
    for step in tree.path(span):
        messages = [*([] if step.standalone else messages), *step.request, step.message]
    return messages


def _content(message: Message) -> Any:
    """Return the content of a message in one form, without ids: they can be missing, or be an application's own."""
    role = message.get("role")
    thinking = find_reasoning(message)
    calls = message.get("tool_calls") or ()
    if legacy := message.get("function_call"):
        calls = (*calls, {"function": legacy})
    name = None if role in ("assistant", "tool", "function") else message.get("name")
    return role, name, _text(message.get("content")), thinking and thinking[1], [_call(call) for call in calls]


def _answer(message: Message) -> Any:
    """Return the same without the thinking."""
    role, name, content, _, calls = _content(message)
    if role == "assistant" and isinstance(content, str):
        content = split_thinking(content).answer.strip()
    return role, name, content, calls


def _text(content: Any) -> Any:
    """Return a content as one text, or as its parts if they are not all text."""
    if isinstance(content, str):
        return content
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content or ()]
    if all(isinstance(part, dict) and part.get("type") in TEXT_PARTS for part in parts):
        return "".join(part.get("text") or "" for part in parts)
    return parts


def _call(call: Any) -> Any:
    function = (call.get("function") or call.get("custom") or {}) if isinstance(call, dict) else {}
    return function.get("name"), _arguments(function.get("arguments", function.get("input")))


def _arguments(arguments: Any) -> Any:
    """Return the arguments of a tool call as JSON in one form; other text as it is."""
    try:
        value = json.loads(arguments, parse_float=_number) if isinstance(arguments, str) and arguments else arguments
        return json.dumps(value or {}, sort_keys=True, default=str)
    except (ValueError, RecursionError):
        return arguments


def _number(text: str) -> float | int:
    """Read a number; a JavaScript application writes 1.0 as 1."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _ids(messages: Sequence[Message]) -> list[Any]:
    calls = [call for message in messages for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return [*(call.get("id") for call in calls), *(message.get("tool_call_id") for message in messages)]
