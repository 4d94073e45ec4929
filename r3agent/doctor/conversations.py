"""Check which conversations a server and its chat template take, and how the graph would render them there."""

from __future__ import annotations

from typing import Any

from r3agent._util.aio import gather_all
from r3agent.doctor.generation import TOOL
from r3agent.doctor.probe import Completion, EndpointProbe
from r3agent.doctor.records import Check
from r3agent.episodes.renderings import RENDERINGS, Rendered
from r3agent.errors import EndpointError, PolicyError
from r3agent.records.prompts import NOT_RUN
from r3agent.records.trajectory import Message

NAME = "conversations"

ASK: Message = {"role": "user", "content": "Say hello."}
AGAIN: Message = {"role": "user", "content": "Say it again."}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "greet", "arguments": "{}"}}
CALLED: list[Message] = [
    ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": NOT_RUN},
]

PARTS: dict[str, list[Message]] = {
    "a system message": [{"role": "system", "content": "Be brief."}, ASK],
    "two user messages in a row": [ASK, AGAIN],
    "an empty answer": [ASK, {"role": "assistant", "content": ""}, AGAIN],
    "a user after a tool, without tools": [*CALLED, AGAIN],
}
"""Conversations that a server may refuse, by what is unusual in them."""

RENDERS = "nothing needs to: r3agent sends a conversation that is refused in another form, and records what it sent"
NO_FORM = "ask for answers in text, not tool calls: the model cannot reflect on a failed try with calls here"


async def conversation_check(probe: EndpointProbe, model: str) -> Check:
    """Send each of `PARTS`, and the last as the graph renders it if it is refused."""

    async def ask(messages: list[Message], **fields: Any) -> Completion | PolicyError:
        return await probe.chat(model, messages=messages, **fields)

    results = dict(zip(PARTS, await gather_all(map(ask, PARTS.values())), strict=True))
    refused = {name: str(result) for name, result in results.items() if isinstance(result, PolicyError)}
    if errors := [str(result) for result in results.values() if isinstance(result, EndpointError)]:
        return Check(name=NAME, status="unknown", detail=errors[0])
    if not refused:
        return Check(name=NAME, status="yes", detail=f"takes {', '.join(PARTS)}")
    detail = "refuses " + "; ".join(f"{name}: {error}" for name, error in refused.items())
    *_, last = PARTS
    if last not in refused:
        return Check(name=NAME, status="no", detail=detail, remedy=RENDERS)
    for render in RENDERINGS[1:]:
        sent = Rendered.by(render, PARTS[last], [TOOL], may_call=False)
        fields: dict[str, Any] = {"tools": sent.tools, "tool_choice": "none"} if sent.forbids_calls else {}
        if isinstance(await ask(sent.messages, **fields), Completion):
            form = render.__name__.replace("_", " ")
            return Check(
                name=NAME, status="no", detail=f"takes a failed try with calls {form}; {detail}", remedy=RENDERS
            )
    return Check(name=NAME, status="no", detail=detail, remedy=NO_FORM)
