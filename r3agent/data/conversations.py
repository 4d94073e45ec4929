"""Conversations of logs, and the trajectories that they become.

All calls of a conversation are the steps of one try. Logs have no token ids, so every answer is at most
`trainable-retokenised`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from r3agent.data.selection import INTERNAL
from r3agent.policy.parse import not_whole
from r3agent.recording.conversation import attach_step
from r3agent.records.json_values import json_value
from r3agent.records.media import why_untrainable
from r3agent.records.reply import normal_calls, read_reply
from r3agent.records.trajectory import (
    SOURCE,
    Capability,
    Message,
    Span,
    Task,
    Trajectory,
    Verdict,
)

IMPORTED = "imported"
"""Metadata key of a trajectory that was made from a log: the kind of log. It is also the name of its verifier."""

OWN = {SOURCE, IMPORTED, "log_id", *INTERNAL}
"""Metadata keys with a meaning of their own; those of a log are put under `log_metadata`."""

NOTE = "imported from a log, which has no token ids"

ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant", "function": "tool", "chat": "user"}
"""Roles by the types of LangChain's messages, where the two differ."""


class Call(NamedTuple):
    """Call of a model."""

    messages: list[Message]
    reply: Message
    tools: list[dict[str, Any]] = []
    model: str = ""
    sampling: dict[str, Any] = {}
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    is_exact: bool = True
    """False if the log has the answer as parsed JSON, whose spaces are not known."""


class Conversation(NamedTuple):
    """Calls of one episode, in order."""

    kind: str
    log_id: str
    """Id in the log, or a hash of the row."""
    calls: list[Call]
    verdict: Verdict | None
    metadata: dict[str, Any]
    created_at: str | None = None

    def trajectory(self, version: str | None) -> Trajectory:
        """Make the trajectory; the same conversation has the same ids.

        Args:
            version: policy version that answered, if it is known.
        """
        id_ = _hash([self.kind, self.log_id, [[call.messages, call.reply] for call in self.calls]])
        first = self.calls[0]
        task = Task.model_validate({"messages": first.messages, "tools": first.tools})
        tree = Trajectory(trajectory_id=id_, task=task)
        for number, call in enumerate(self.calls):
            place = attach_step(tree, None, [span.span_id for span in tree.spans], call.messages)
            last = number == len(self.calls) - 1
            span = _span(call, same_tools=call.tools == first.tools).model_copy(
                update={
                    "span_id": _hash([id_, number]),
                    "policy_version": version,
                    "verdict": self.verdict if last else None,
                }
            )
            tree = tree.changed(spans=(*tree.spans, Span.model_validate({**dict(span), **place})))
        given = json_value(self.metadata)
        metadata = {key: value for key, value in given.items() if key not in OWN}
        if taken := {key: value for key, value in given.items() if key in OWN}:
            metadata["log_metadata"] = taken
        metadata |= {IMPORTED: self.kind, "log_id": self.log_id}
        dated = {} if self.created_at is None else {"created_at": self.created_at}
        return tree.changed(verifier=IMPORTED, metadata=metadata, **dated)


def _span(call: Call, *, same_tools: bool) -> Span:
    reply = read_reply(call.reply)
    unfit = why_untrainable(call.messages) or (call.finish_reason and not_whole(call.finish_reason))
    if not (reply.text or reply.tool_calls or reply.reasoning):
        unfit = "the completion is empty"
    elif call.reasoning_tokens or reply.has_more:
        unfit = unfit or f"{NOTE}, and its text lacks the thinking: it is not what was sampled"
    elif not call.is_exact:
        unfit = unfit or f"{NOTE}, and has the answer as parsed JSON: its text may have other spaces"
    elif not same_tools:
        unfit = unfit or f"{NOTE}, and it was asked with other tools than the task's"
    capability: Capability = "eval-only" if unfit else "trainable-retokenised"
    field, reasoning = reply.reasoning or ("reasoning", None)
    return Span(
        label="attempt",
        text=reply.text,
        reasoning=reasoning,
        reasoning_field=field,
        tool_calls=normal_calls(call.reply.get("tool_calls") or reply.tool_calls),
        extra=reply.extra,
        model=call.model,
        sampling=json_value(call.sampling),
        finish_reason=call.finish_reason,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        capability=capability,
        capability_note=unfit or NOTE,
    )


def conversation_calls(messages: Sequence[Message], **fields: Any) -> list[Call]:
    """Return the calls that answered the last message of a person: each message of the model after it is one."""
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    answers = [i for i, message in enumerate(messages) if i > asked and message["role"] == "assistant"]
    return [Call([*messages[:i]], messages[i], **fields) for i in answers]


def as_messages(value: Any) -> list[Message]:
    """Read messages in the forms of OpenAI and of LangChain, or a text, which is a person's."""
    value = parsed(value)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("messages", "prompts", "input") if value.get(key) is not None), None)
        return [as_message(value)] if inner is None else as_messages(inner)
    if not isinstance(value, list) or not value:
        raise ValueError("it has no messages")
    if isinstance(value[0], list):  # LangChain's batch
        return as_messages(value[0])
    return [as_message(message) for message in value]


def as_message(value: Any) -> Message:
    """Read one message."""
    value = parsed(value)
    if isinstance(value, str):
        return {"role": "user", "content": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"a message is {type(value).__name__}")
    if value.get("lc") and isinstance(value.get("kwargs"), Mapping):  # LangChain's serialisation
        kind = str((value.get("id") or [""])[-1]).removesuffix("Chunk").removesuffix("Message").lower()
        return as_message({"type": kind, **value["kwargs"]})
    if isinstance(value.get("data"), Mapping) and "type" in value:  # LangChain's `message_to_dict`
        return as_message({"type": value["type"], **value["data"]})
    role = value.get("role") or value.get("type")
    if not isinstance(role, str):
        raise ValueError("a message has no role")
    message: Message = {"role": ROLES.get(role, role), "content": value.get("content")}
    kept = ("name", "tool_call_id", "reasoning", "reasoning_content", "refusal", "function_call")
    message |= {key: value[key] for key in kept if value.get(key) is not None}
    more: Any = value.get("additional_kwargs")
    calls = (more.get("tool_calls") if isinstance(more, Mapping) else None) or value.get("tool_calls")
    if calls:
        message["tool_calls"] = [*normal_calls([_openai_call(call) for call in parsed(calls)])]
    return message


def _openai_call(call: Any) -> Any:
    """Return a tool call in OpenAI's form; LangChain's has `args`."""
    if isinstance(call, Mapping) and "args" in call:
        return {"id": call.get("id"), "function": {"name": call.get("name"), "arguments": call["args"]}}
    return call


def parsed(value: Any) -> Any:
    """Parse JSON that is in a text, as exports to tables have it."""
    if isinstance(value, str) and value[:1] in ("[", "{", '"'):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
