"""Policy adapter for LangChain: use any chat model as a policy.

    graph = build_graph(policy=ChatModelPolicy(ChatOpenAI(model="gpt-4.1-mini", logprobs=True)), verifier=check)

LangChain returns text, tool calls, usage and, depending on the provider, logprobs, but no token ids. Spans of such a
policy can be trained on only after tokenising their text again, and each span records this. To train on the exact
sampled tokens, use `OpenAIPolicy`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from pydantic import SecretStr

from r3agent._util.aio import gather_all
from r3agent._util.checked import checked
from r3agent.errors import AccessError, EndpointError, PolicyError, RequestError
from r3agent.http.body import read_text
from r3agent.http.errors import MIN_SECRET, text_refusal
from r3agent.http.negotiation import Terms, negotiate
from r3agent.http.refusal import refused_fields
from r3agent.policy.base import Sampling
from r3agent.policy.parse import not_whole, read_logprobs
from r3agent.records import versions
from r3agent.records.cost import Prices
from r3agent.records.generation import LENGTH
from r3agent.records.reply import CALL_PARTS, TEXT_PARTS, Reply, normal_calls, read_reply
from r3agent.records.sampling import LIMITS, reshaping
from r3agent.records.trajectory import Capability, Generation, Message

NO_IDS = "LangChain passes on no token ids"
FINISH_REASONS = ("finish_reason", "stop_reason", "done_reason")
"""Keys of the finish reason, by provider."""


class ChatModelPolicy:
    """Policy that samples from any `BaseChatModel`.

    Args:
        model: a chat model with its own retries and timeouts; r3agent adds none.
        version: policy version of the model, if the model name in its responses has none; default: the base.
        headers: further headers of each request, e.g. of a gateway, for providers whose calls take `extra_headers`, as
            those of OpenAI and Anthropic do; never recorded.
        prices: prices of the model's tokens, for budgets of cost.

    The graph's `sampling` is passed to the model as keyword arguments (`temperature`, `top_p`, `max_tokens`, ...),
    without those that the provider refuses; without it the model uses its own settings.
    """

    @checked
    def __init__(
        self,
        model: BaseChatModel,
        *,
        version: str | None = None,
        headers: Mapping[str, str] | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.model = model
        self.prices = prices
        self._version = version or versions.BASE
        self._options: dict[str, Any] = {"extra_headers": dict(headers)} if headers else {}
        self._terms = Terms(repr(self))

    def __repr__(self) -> str:
        return f"ChatModelPolicy({type(self.model).__name__})"

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Sample `n` completions with `n` concurrent calls.

        Raises:
            AccessError: the provider refuses the key or does not know the model.
            RequestError: the provider refuses this request; a `ConversationError` if it is because of its text.
            EndpointError: the model raises any other error.
        """
        model: Any = self.model.bind_tools(list(tools)) if tools else self.model
        prompt = as_langchain(messages)

        async def one(settings: Sampling | None) -> Generation:
            asked = {} if settings is None else settings.body()

            async def send(sent: dict[str, Any]) -> Generation:
                start = time.perf_counter()
                try:
                    answer = await model.ainvoke(prompt, **sent, **self._options)
                except Exception as error:  # every provider has its own classes
                    raise self._mapped(error, sent) from None
                in_force = {} if settings is None else settings.in_force(sent, asked)
                return self._generation(answer, in_force, round(time.perf_counter() - start, 4))

            return await negotiate(self._terms, asked, send, asked=asked)

        return await gather_all(one(sampling and sampling.for_choice(i)) for i in range(n))

    async def aclose(self) -> None:
        """Do nothing: the model belongs to the application."""

    def _generation(self, answer: AIMessage, sampling: dict[str, Any], latency_s: float) -> Generation:
        metadata, usage = answer.response_metadata, answer.usage_metadata
        more = {key: value for key, value in answer.additional_kwargs.items() if _is_json(value)}
        reply = read_reply({**more, "content": answer.content, "tool_calls": _tool_calls(answer)})
        logprobs, wrong = read_logprobs(metadata.get("logprobs"))
        reason = next((str(metadata[k]) for k in FINISH_REASONS if metadata.get(k)), None)
        name = str(metadata.get("model_name") or metadata.get("model") or getattr(self.model, "model_name", "unknown"))
        capability, note = _grade(reply, answer.content, reason)
        flaw, refused = reshaping(sampling), ", ".join(sampling.get("refused", ()))
        left = f"the server decided on {refused}" if refused else None
        return Generation(
            text=reply.text,
            reasoning=None if reply.reasoning is None else reply.reasoning[1],
            reasoning_field="reasoning" if reply.reasoning is None else reply.reasoning[0],
            tool_calls=reply.tool_calls,
            extra=reply.extra,
            logprobs=None if logprobs is None or capability == "eval-only" else tuple(logprobs),
            model=name,
            policy_version=versions.served_version(name) or self._version,
            sampling=sampling,
            finish_reason="length" if reason is not None and reason.lower() in LENGTH else reason,
            prompt_tokens=None if usage is None else usage["input_tokens"],
            cached_tokens=None if usage is None else usage.get("input_token_details", {}).get("cache_read"),
            completion_tokens=None if usage is None else usage["output_tokens"],
            latency_s=latency_s,
            capability=capability,
            capability_note="; ".join(filter(None, [note, flaw, left, wrong])),
        )

    def _mapped(self, error: Exception, sent: Mapping[str, Any]) -> PolicyError:
        """Map a provider's error onto `r3agent.errors`, and redact the model's keys and headers in its message."""
        message = f"{type(self.model).__name__}: {type(error).__name__}: {error}"
        for value, name in self._secrets():
            message = message.replace(value, f"[the {name}]")
        response = getattr(error, "response", None)
        codes = [getattr(source, name, None) for source in (error, response) for name in ("status_code", "code")]
        status = next((code for code in codes if isinstance(code, int)), None)
        if status is None and isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            status = 400
        if refusal := text_refusal(400 if status is None else status, message):  # some providers' errors have no status
            return refusal(f"{message}; {refusal.remedy}")
        text = getattr(response, "text", None)
        body = read_text(text if isinstance(text, str) and text else str(error))
        named = f"{body.param or ''} {body.message}"
        for limit in sent.keys() & {*LIMITS}:  # ChatOpenAI sends either under its own name
            named = re.sub("|".join(LIMITS), limit, named)
        if status in (400, 413, 422) or refused_fields(status or 0, named, sent):
            return RequestError(message, status=status or 0, refusal=named)
        if status in (401, 403, 404, 405):
            return AccessError(f"{message}; check the key and the name of the model")
        return EndpointError(message)

    def _secrets(self) -> Iterator[tuple[str, str]]:
        """Yield the values that no message may quote, and what they are."""
        headers = {**(getattr(self.model, "default_headers", None) or {}), **self._options.get("extra_headers", {})}
        yield from ((value, f"header {name}") for name, value in headers.items() if len(str(value)) >= MIN_SECRET)
        for value in vars(self.model).values():
            if isinstance(value, SecretStr) and value.get_secret_value():
                yield value.get_secret_value(), "API key"


def _grade(reply: Reply, content: Any, reason: str | None) -> tuple[Capability, str]:
    if not (reply.text or reply.tool_calls):
        return "eval-only", "the completion is empty"
    if reason is not None and (why := not_whole(reason)) is not None:
        return "eval-only", why
    if reply.has_more:
        blocks = content if isinstance(content, list) and "content" in reply.extra else ()
        kinds = {str(block.get("type")) for block in blocks if isinstance(block, dict)} - {*TEXT_PARTS, *CALL_PARTS}
        return "eval-only", f"{NO_IDS}, and the text does not spell its {', '.join(sorted(kinds)) or 'thinking'}"
    return "trainable-retokenised", NO_IDS


def as_langchain(messages: Sequence[Message]) -> list[BaseMessage]:
    """Convert a conversation to LangChain's messages.

    Raises:
        RequestError: it has no such form, e.g. a tool call whose arguments are not JSON.
    """
    try:
        return convert_to_messages(
            [{**m, "tool_calls": normal_calls(m["tool_calls"])} if m.get("tool_calls") else m for m in messages]
        )
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise RequestError(f"LangChain does not take the conversation: {type(error).__name__}: {error}") from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _tool_calls(answer: AIMessage) -> tuple[dict[str, Any], ...]:
    """Convert tool calls to the format of OpenAI's API, including those whose arguments are not JSON."""
    called = [(call.get("id"), call["name"], json.dumps(call["args"])) for call in answer.tool_calls]
    called += [(call.get("id"), call["name"] or "", call["args"] or "") for call in answer.invalid_tool_calls]
    return tuple(
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in called
    )
