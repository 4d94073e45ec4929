"""Renderings of a conversation for servers and chat templates that refuse it as it is.

After a failed try with tool calls the graph continues as OpenAI's API and most templates take it: assistant with calls,
tool messages, user. Others refuse a part of that, with 400 or 422:

- a user message after a tool message (Mistral), two messages of one role in a row (Mistral, Gemma, Llama);
- calls in a conversation that is sent without tools (Anthropic and gateways to it), calls without results;
- a message without text (Anthropic, Mistral, Gemini), a system message (Gemma), fields such as `reasoning_content`.

A refused conversation is rendered in the next of `RENDERINGS` and sent again. Later conversations begin with the one
that is taken if the endpoint needs it, and not this conversation alone, such as one whose call is no JSON: two tasks
needed it, and no conversation that it would change was taken in an earlier one. The span records what was sent, as a
`standalone` request. Most conversations, such as all without calls, system messages and empty texts, are the same in
each.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import takewhile
from typing import Any, NamedTuple

from r3agent.errors import AccessError, ConversationError, RequestError
from r3agent.records.prompts import NOT_RUN
from r3agent.records.reply import text_of
from r3agent.records.trajectory import Generation, Message

logger = logging.getLogger(__name__)

EMPTY = "(empty)"
"""Text of a message without one."""
GO_ON = "I see."
"""Text of the assistant between the results of its calls and the user."""

KNOWN_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")
"""Fields of a message that every server takes."""

MISTRAL_ID = re.compile("[a-zA-Z0-9]{9}")


def as_it_is(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation unchanged."""
    return list(messages)


def in_order(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with the same calls, in the order and with the texts that strict servers want."""
    ordered: list[Message] = []
    ids: dict[str, str] = {}  # of the calls without a result so far, by the id that their results have
    taken: set[str] = set()
    for message in messages:
        role, answered = message["role"], str(message.get("tool_call_id"))
        if role == "tool" and answered in ids:
            ordered.append({**message, "tool_call_id": ids.pop(answered), "content": _filled(message.get("content"))})
            continue
        ordered += [_result(id_) for id_ in ids.values()]
        ids = {}
        content = _filled(message.get("content"))
        calls: list[Message] = list(message.get("tool_calls") or ())
        if calls:
            renamed = [{**call, "id": _new_id(call, taken, len(ordered), place)} for place, call in enumerate(calls)]
            ids = {str(old.get("id")): new["id"] for old, new in zip(calls, renamed, strict=True)}
            ordered.append({**message, "content": None if content == EMPTY else content, "tool_calls": renamed})
            continue
        message = {**message, "content": content}
        if role == "tool":  # it answers no call
            message, role = {"role": "user", "content": message["content"]}, "user"
        if role == "user" and ordered and ordered[-1]["role"] == "tool":
            ordered.append({"role": "assistant", "content": GO_ON})
        if role == "user" and ordered and ordered[-1]["role"] == "user":
            message = {**message, "content": _joined(ordered.pop()["content"], message["content"])}
        ordered.append(message)
    return [*ordered, *(_result(id_) for id_ in ids.values())]


def without_extras(messages: Sequence[Message]) -> list[Message]:
    """Return the same with only the fields that every server knows: no thinking, no signatures."""
    return [{key: value for key, value in message.items() if key in KNOWN_FIELDS} for message in in_order(messages)]


def in_words(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation as texts of user and assistant in turn: calls, results and system messages in words."""
    spoken: list[Message] = []
    for message in messages:
        content = message.get("content")
        if calls := message.get("tool_calls"):
            texts = [text_of(content), *(json.dumps(_called(call), ensure_ascii=False) for call in calls)]
            content = "\n".join(text for text in texts if text)
        role = "assistant" if message["role"] == "assistant" else "user"
        content = _filled(text_of(content) if role == "assistant" else content)
        if spoken and spoken[-1]["role"] == role:
            content = _joined(spoken.pop()["content"], content)
        spoken.append({"role": role, "content": content})
    return spoken


RENDERINGS: tuple[Callable[[Sequence[Message]], list[Message]], ...] = (as_it_is, in_order, without_extras, in_words)
"""Renderings, each taken by more servers than the one before, and further from what the model was trained on."""


class Rendered(NamedTuple):
    """Conversation as it is sent."""

    messages: list[Message]
    tools: Sequence[dict[str, Any]]
    forbids_calls: bool = False
    """True if the tools are only there because the conversation has calls."""

    @classmethod
    def by(
        cls,
        render: Callable[[Sequence[Message]], list[Message]],
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        *,
        may_call: bool,
    ) -> Rendered:
        """Render a conversation, with the tools if the model may call them or a strict server wants them."""
        sent = render(messages)
        if may_call:
            return cls(sent, tools)
        has_calls = any(message.get("tool_calls") for message in sent)
        return cls(sent, tools, forbids_calls=True) if has_calls and render is not as_it_is else cls(sent, ())


@dataclass
class Memory:
    """Memory of the forms in which an endpoint took one kind of conversations."""

    begin: int = 0
    """Index in `RENDERINGS` that conversations begin with."""
    refusals: dict[int, list[Message]] = field(default_factory=dict)
    """Task of the first conversation that was taken in a rendering and refused in those before it."""
    taken: deque[tuple[int, Sequence[Message], Rendered]] = field(default_factory=lambda: deque(maxlen=16))
    """Last conversations that were taken, with the rendering of each."""

    def learn(self, i: int, messages: Sequence[Message], sent: Rendered, *, was_refused: bool) -> None:
        """Remember a conversation that was taken in rendering `i`."""
        task = list(takewhile(lambda message: message["role"] != "assistant", messages))
        if was_refused and self.refusals.setdefault(i, task) != task and not self._took_unchanged(i):
            self.begin = max(i, self.begin)
        self.taken.append((i, messages, sent))

    def _took_unchanged(self, i: int) -> bool:
        """Return True if a conversation was taken in a form that rendering `i` would change."""
        render = RENDERINGS[i]
        return any(
            before < i and _form(render(messages)) != _form(sent.messages) for before, messages, sent in self.taken
        )


class Renderer:
    """Renderer of a policy's conversations, which remembers what the endpoint takes."""

    def __init__(self) -> None:
        self._memories = {True: Memory(), False: Memory()}
        """Those of conversations with and without calls."""

    async def send(
        self,
        ask: Callable[[Rendered], Awaitable[list[Generation]]],
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        *,
        may_call: bool,
    ) -> tuple[list[Generation], Rendered]:
        """Return the generations, and the conversation that the endpoint took.

        Args:
            ask: sends a conversation.
            tools: the task's tools.
            may_call: send the tools in any case, not only where a strict server wants them.

        Raises:
            PolicyError: the error of `ask`; if the endpoint refuses each rendering, the first refusal.
        """
        memory = self._memories[any(message.get("tool_calls") for message in messages)]
        begin = memory.begin
        tried: list[Rendered] = []
        first: RequestError | None = None
        for i, render in enumerate(RENDERINGS[begin:], begin):
            rendered = Rendered.by(render, messages, tools, may_call=may_call)
            if rendered in tried:
                continue
            tried.append(rendered)
            try:
                generations = await ask(rendered)
            except (AccessError, ConversationError):
                raise
            except RequestError as error:
                first = first or error
                continue
            if first is not None:
                name = render.__name__.replace("_", " ")
                log = logger.warning if i not in memory.refusals else logger.debug
                log("the endpoint refuses a conversation as it is, and takes it %s: %s", name, first)
            memory.learn(i, messages, rendered, was_refused=first is not None)
            return generations, rendered
        assert first is not None  # there is at least one rendering
        raise first


def _form(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return the roles of a conversation, and which messages have calls."""
    return [(message["role"], bool(message.get("tool_calls"))) for message in messages]


def _filled(content: Any) -> Any:
    """Return a content, or `EMPTY` in place of none and of white space."""
    return EMPTY if not content or (isinstance(content, str) and not content.strip()) else content


def _result(id_: str) -> Message:
    return {"role": "tool", "tool_call_id": id_, "content": NOT_RUN}


def _new_id(call: Message, taken: set[str], *place: int) -> str:
    """Return the id of a call, or another one if it has not Mistral's form, or an earlier call has it."""
    id_ = str(call.get("id"))
    if id_ in taken or not MISTRAL_ID.fullmatch(id_):
        id_ = sha256(json.dumps([id_, *place]).encode()).hexdigest()[:9]
    taken.add(id_)
    return id_


def _called(call: Message) -> Any:
    return call.get("function") or call.get("custom") or call


def _joined(first: Any, second: Any) -> Any:
    """Join two contents: as text, or as parts if one of them has any."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [
        part for content in (first, second) for part in (content if isinstance(content, list) else [_part(content)])
    ]


def _part(text: Any) -> Message:
    return {"type": "text", "text": str(text)}
