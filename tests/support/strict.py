"""Validators of conversations after those of strict servers: each returns why a request is refused, or `None`.

mistral    `mistral_common`'s validator and the API's message order; `old_mistral` before tokenizer version 5
anthropic  the Messages API, as gateways to it pass a conversation on
gemini     the function-calling turns and thought signatures of the Gemini API
template   chat templates of Gemma, Llama 2 and Mistral 7B, which know neither system nor tool messages
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id"}


def mistral(body: Json) -> str | None:
    after = {
        None: {"system", "user"},
        "system": {"user", "assistant", "system"},
        "user": {"assistant", "system", "user"},
        "assistant": {"assistant", "user", "tool"},
        "tool": {"assistant", "tool"},
    }
    last: str | None = None
    open_ids: list[str] = []
    for message in body["messages"]:
        role = message["role"]
        if role not in after[last]:
            return f"Unexpected role '{role}' after role '{last}'"
        if more := message.keys() - FIELDS:
            return f"Extra inputs are not permitted: {sorted(more)}"
        if role == "assistant":
            if open_ids:
                return "Not the same number of function calls and responses"
            calls = message.get("tool_calls") or ()
            if not message.get("content") and not calls:
                return "Assistant message must have either content or tool_calls, but not none."
            for call in calls:
                if not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
                    return f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9."
                if not NAME.fullmatch(call["function"]["name"]):
                    return f"Function name was {call['function']['name']} but must be a-z, A-Z, 0-9"
                json.loads(call["function"]["arguments"])
                open_ids.append(call["id"])
        elif role == "tool":
            if message["tool_call_id"] not in open_ids:
                return "More tool responses than tool calls"
            open_ids.remove(message["tool_call_id"])
        elif open_ids:
            return "Not the same number of function calls and responses"
        last = role
    return None if last in ("user", "tool") else f"Expected last role User or Tool for serving but got {last}"


def old_mistral(body: Json) -> str | None:
    if any(message.get("content") and message.get("tool_calls") for message in body["messages"]):
        return "Assistant message must have either content or tool_calls, but not both."
    return mistral(body)


def anthropic(body: Json) -> str | None:
    messages = [message for message in body["messages"] if message["role"] != "system"]
    if messages[0]["role"] != "user":
        return "messages: first message must use the user role"
    has_calls = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    if has_calls and not body.get("tools"):
        return "Requests which include `tool_use` or `tool_result` blocks must define tools"
    ids: set[str] = set()
    waiting: set[str] = set()
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                return f"messages.{i}: unexpected `tool_use_id` found in `tool_result` blocks"
            waiting.remove(message["tool_call_id"])
        elif waiting:
            return f"messages.{i}: `tool_use` ids were found without `tool_result` blocks immediately after"
        content = message.get("content")
        if (content is None and not message.get("tool_calls")) or (content is not None and not str(content).strip()):
            return f"messages.{i}: text content blocks must contain non-whitespace text"
        for call in message.get("tool_calls") or ():
            if call["id"] in ids or not re.fullmatch("[a-zA-Z0-9_-]+", call["id"]):
                return f"messages.{i}: `tool_use` ids must be unique"
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return f"messages.{i}: tool_use.input: Input should be a valid dictionary"
            ids.add(call["id"])
            waiting.add(call["id"])
    return None


def gemini(body: Json) -> str | None:
    messages = [message for message in body["messages"] if message["role"] != "system"]
    last, waiting = "model", 0
    for message in messages:
        role = "model" if message["role"] == "assistant" else message["role"]
        calls = message.get("tool_calls") or ()
        if not message.get("content") and not calls:
            return "Unable to submit request because it must have a text parameter."
        if role == "tool":
            waiting -= 1
            if waiting < 0:
                return "Please ensure that function response turn comes immediately after a function call turn."
        elif waiting:
            return "The number of function response parts is not equal to the number of function call parts"
        if role == last == "user" or (last == "tool" and role == "user") or role == last == "model":
            return "Please ensure that multiturn requests alternate between user and model."
        if calls and "extra_content" not in calls[0]:
            return "Function call is missing a thought_signature in functionCall parts."
        last, waiting = role, waiting + len(calls)
    has_calls = any(message.get("tool_calls") for message in messages)
    return "functionCall parts need function declarations" if has_calls and not body.get("tools") else None


def template(body: Json) -> str | None:
    roles = [message["role"] for message in body["messages"]]
    if "system" in roles:
        return "System role not supported"
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        return "Conversation roles must alternate user/assistant/user/assistant/..."
    return None if len(roles) % 2 else "the last message must be the user's"


STRICT: dict[str, Callable[[Json], str | None]] = {
    "mistral": mistral,
    "old mistral": old_mistral,
    "anthropic": anthropic,
    "gemini": gemini,
    "template": template,
}
