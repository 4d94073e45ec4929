"""Spans by the GenAI conventions of OpenTelemetry: agents, model calls, tool calls, and evaluations.

Messages, arguments, results and feedback are left out, unless `capture_content` or the standard environment variable
allows them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from r3agent.records.generation import Generation, Verdict
from r3agent.records.json_values import json_bytes
from r3agent.records.record import new_id
from r3agent.records.reply import arguments_of, called, text_of
from r3agent.records.span import Span, Try
from r3agent.records.task import Message, Task
from r3agent.telemetry.tracing import VERSION, TraceSpan, begin, now_ns

if TYPE_CHECKING:
    from opentelemetry.context import Context

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Standard environment variable that allows content."""

ALLOWED = ("true", "1", "span_only", "span_and_event")

REQUEST = {
    "temperature": float,
    "top_p": float,
    "top_k": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "max_tokens": int,
    "seed": int,
}
"""Fields of a request that the conventions name, with their types."""

_captures = False


def capture_content(captures: bool) -> None:
    """Allow or forbid content, if the environment does not decide."""
    global _captures
    _captures = captures


def captures_content() -> bool:
    return os.environ[CONTENT].lower() in ALLOWED if os.environ.get(CONTENT) else _captures


def episode(task: Task | None, *, agent: str = "", trajectory_id: str | None = None, **attributes: Any) -> TraceSpan:
    """Begin the span of an episode."""
    name = agent or "r3agent"
    trajectory_id = trajectory_id or new_id()
    return begin(
        f"invoke_agent {name}",
        lambda: {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": name,
            "gen_ai.conversation.id": trajectory_id,
            "r3agent.task.id": task and task.id,
            **{f"r3agent.{key}": value for key, value in attributes.items()},
        },
        trajectory_id=trajectory_id,
        is_own=True,
    )


class ModelCall:
    """Span of one request to a model, from now to its answer.

    Args:
        fields: returns the fields of the request, if there is a tracer.
    """

    def __init__(
        self,
        model: str,
        fields: Callable[[], Mapping[str, Any]],
        messages: Sequence[Message],
        *,
        base_url: object = None,
        label: str | None = None,
        purpose: str | None = None,
        trajectory_id: str | None = None,
        parent: Context | None = None,
    ) -> None:
        self._messages, self._started_ns = messages, now_ns()
        self.span = begin(
            f"chat {model}",
            lambda: {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": model,
                "r3agent.label": label,
                "r3agent.purpose": purpose,
                **_request(fields()),
                **_server(base_url),
            },
            kind="CLIENT",
            trajectory_id=trajectory_id,
            parent=parent,
            start_ns=self._started_ns,
        )

    def __enter__(self) -> ModelCall:
        self.span.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.span.__exit__(*error)

    def end(self, latency_s: float | None) -> None:
        """End a call whose answer came after a time, although it is recorded only now."""
        started_ns = self._started_ns
        self.span.end(None if started_ns is None or latency_s is None else started_ns + round(latency_s * 1e9))

    def answered(self, generations: Sequence[Generation], span_ids: Sequence[str] = ()) -> None:
        """Set what the answer says."""

        def attributes() -> dict[str, Any]:
            first, counts = generations[0], [one.completion_tokens for one in generations]
            sampled = [count for count in counts if count is not None]
            outputs = ({**_parts(one.message), "finish_reason": one.finish_reason or "unknown"} for one in generations)
            return {
                "gen_ai.response.model": first.model,
                "gen_ai.response.finish_reasons": [one.finish_reason or "" for one in generations],
                "gen_ai.usage.input_tokens": first.prompt_tokens,
                "gen_ai.usage.output_tokens": sum(sampled) if sampled else first.sibling_tokens,
                "gen_ai.usage.cache_read.input_tokens": first.cached_tokens,
                VERSION: first.policy_version,
                "r3agent.span.ids": [*span_ids] or None,
                "gen_ai.input.messages": _content([_parts(message) for message in self._messages]),
                "gen_ai.output.messages": _content([*outputs]),
            }

        if generations:
            self.span.set(attributes)


def tool_call(
    name: str,
    call_id: object,
    arguments: object,
    *,
    seen_ns: int | None = None,
    trajectory_id: str | None = None,
    parent: Context | None = None,
) -> TraceSpan:
    """Begin the span of a tool call.

    Args:
        seen_ns: time at which its result was seen, if it is not known when the tool ran.
    """
    return begin(
        f"execute_tool {name}",
        lambda: {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": None if call_id is None else str(call_id),
            "gen_ai.tool.call.arguments": _content(arguments),
            "r3agent.tool.timed": None if seen_ns is None else False,
        },
        trajectory_id=trajectory_id,
        parent=parent,
        start_ns=seen_ns,
    )


def tool_result(span: TraceSpan, text: str, *, failed: bool) -> None:
    """Set the result of a tool call."""
    if failed:
        span.fail("tool_error")
    span.set(lambda: {"gen_ai.tool.call.result": _content(text)})


def evaluation(
    verifier: str,
    a_try: Span | Try,
    start_ns: int | None = None,
    *,
    trajectory_id: str | None = None,
    parent: Context | None = None,
) -> TraceSpan:
    """Begin the span of a verdict on a try."""
    last = a_try.last if isinstance(a_try, Try) else a_try
    return begin(
        f"evaluate {verifier}",
        lambda: {"gen_ai.evaluation.name": verifier, "r3agent.label": last.label, "r3agent.span.ids": [last.span_id]},
        trajectory_id=trajectory_id,
        parent=parent,
        start_ns=start_ns,
    )


def label(trajectory_id: str, span_id: str, verdict: Verdict) -> None:
    """Make the span of a verdict that is added to a stored episode, which has no duration."""
    with begin(
        "evaluate label",
        lambda: {"gen_ai.evaluation.name": "label", "r3agent.span.ids": [span_id]},
        trajectory_id=trajectory_id,
        is_own=True,
    ) as span:
        judged(span, verdict)


def judged(span: TraceSpan, verdict: Verdict | None) -> None:
    """Set the verdict; `None` if it is pending."""
    span.set(
        lambda: {
            "gen_ai.evaluation.score.value": None if verdict is None else verdict.score,
            "gen_ai.evaluation.score.label": "pending" if verdict is None else "pass" if verdict.passed else "fail",
            "gen_ai.evaluation.explanation": _content(None if verdict is None else verdict.feedback),
            "r3agent.verdict.by": _content(None if verdict is None else verdict.by),
        }
    )


def _request(fields: Mapping[str, Any]) -> dict[str, Any]:
    limit = fields.get("max_tokens", fields.get("max_completion_tokens"))
    given = {**fields, "max_tokens": limit}
    stop, n = fields.get("stop"), fields.get("n")
    numbers = {
        f"gen_ai.request.{name}": kind(given[name])
        for name, kind in REQUEST.items()
        if isinstance(given.get(name), int | float)
    }
    return {
        **numbers,
        "gen_ai.request.stop_sequences": [stop] if isinstance(stop, str) else [*stop] if stop else None,
        "gen_ai.request.choice.count": n if n != 1 else None,
        "gen_ai.request.stream": True if fields.get("stream") else None,
    }


def _server(base_url: object) -> dict[str, Any]:
    """Return the host and port of a URL; its path and user may be secrets."""
    parts = urlsplit(str(base_url or ""))
    if not parts.hostname:
        return {}
    return {"server.address": parts.hostname, "server.port": parts.port or (443 if parts.scheme == "https" else 80)}


def _parts(message: Message) -> dict[str, Any]:
    """Return a message in the form of the conventions."""
    content, text = message.get("content"), text_of(message.get("content"))
    if message.get("role") == "tool":
        response = {"type": "tool_call_response", "id": message.get("tool_call_id"), "result": text}
        return {"role": "tool", "parts": [response]}
    parts: list[dict[str, Any]] = [{"type": "text", "content": text}] if content else []
    for call in message.get("tool_calls") or ():
        named = {"name": called(call), "arguments": arguments_of(call)}
        parts.append({"type": "tool_call", "id": call.get("id"), **named})
    return {"role": message.get("role"), "parts": parts}


def _content(value: Any) -> str | None:
    """Return content as text, if it may be exported."""
    if value is None or not captures_content():
        return None
    return value if isinstance(value, str) else json_bytes(value).decode()
