"""A policy turns a conversation into sampled completions and reports the exact tokens where it can.

`OpenAIPolicy` talks to any OpenAI-compatible endpoint. It asks for logprobs and for vLLM's token ids, goes on
without what the endpoint refuses, and says on every generation what it is good for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import orjson
from pydantic import Field

from r3agent import versions
from r3agent._async import run_sync, together
from r3agent.endpoint import Endpoint, Reply
from r3agent.errors import AccessError, ProtocolError, RequestError
from r3agent.trajectory import Capability, Generation, Message, Record
from r3agent.urls import shown


class Sampling(Record):
    """How completions are drawn; sent with every request and stored on every span."""

    temperature: float = Field(default=1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The smallest set of most likely tokens with this much probability is drawn from."""
    max_tokens: int = Field(default=512, ge=1)
    """Per completion."""
    seed: int | None = None
    """Choice i of a request is drawn with seed + i, as vLLM numbers them."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    extra: dict[str, Any] = {}
    """Further fields of the request body, for options only this endpoint knows."""

    def body(self) -> dict[str, Any]:
        """The fields of a chat completion request."""
        body = self.model_dump(exclude={"extra"}, exclude_none=True, mode="json")
        if not self.stop:
            del body["stop"]
        return {**body, **self.extra}

    def of_choice(self, i: int) -> Sampling:
        """What draws choice i alone: a seeded request that is merely repeated gives the same completion again."""
        return self if self.seed is None else self.model_copy(update={"seed": self.seed + i})


@runtime_checkable
class Policy(Protocol):
    """What the graph needs of a model."""

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Draw `n` completions of one conversation.

        Raises:
            PolicyError: the endpoint did not give them.
        """
        ...

    async def aclose(self) -> None:
        """Release connections; the policy is not used afterwards."""
        ...


class OpenAIPolicy:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        base_url: ends in `/v1`, e.g. `http://127.0.0.1:8000/v1`.
        model: the served name; `NAME@v0007` is version v0007 of NAME, a bare name is the base, v0000.
        api_key: default `$OPENAI_API_KEY`; never recorded.
        version: the registry's version, where the served name does not carry it (weights reloaded in place).
        concurrency: connections kept open, and the most requests under way at once.
        timeout_s: for one request.
        max_tries: for one request; `r3agent.endpoint` says what is tried again.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        sampling: Sampling | None = None,
        version: str | None = None,
        concurrency: int = 64,
        timeout_s: float = 600.0,
        max_tries: int = 6,
    ) -> None:
        self.base_url = base_url
        self.model = model
        self.sampling = sampling or Sampling()
        self._version = version
        self._refused: set[str] = set()
        self._endpoint = Endpoint(
            base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "EMPTY",
            concurrency=concurrency,
            timeout_s=timeout_s,
            max_tries=max_tries,
        )

    def __repr__(self) -> str:
        return f"OpenAIPolicy({shown(self.base_url)!r}, {self.model!r})"

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Draw `n` completions with one request; an endpoint that gives fewer is asked again for each of the rest.

        Raises:
            EndpointError: unreachable, timed out or failing, after `max_tries`.
            AccessError: the key, the model or the URL is wrong.
            RequestError: this request was refused, e.g. the prompt is too long.
            ProtocolError: the answer is not an OpenAI response.
        """
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        drawn = sampling or self.sampling
        generations = await self._complete(body, drawn, n)
        rest = (self._complete(body, drawn.of_choice(i), 1) for i in range(len(generations), n))
        return generations + [generation for one in await together(rest) for generation in one]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoint.aclose()

    def close(self) -> None:
        """Close the connections that `graph.invoke` opened."""
        run_sync(self.aclose())

    async def __aenter__(self) -> OpenAIPolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _complete(self, body: dict[str, Any], drawn: Sampling, n: int) -> list[Generation]:
        wanted = {"logprobs": True, "return_token_ids": True, **({"n": n} if n > 1 else {})}
        refused = set(self._refused)
        while True:
            asked = {field: value for field, value in wanted.items() if field not in refused}
            try:
                reply = await self._endpoint.post("/chat/completions", {**body, **drawn.body(), **asked})
            except AccessError:
                raise
            except RequestError as error:
                named = next((field for field in asked if re.search(rf"(?<!\\)\b{field}\b", str(error))), None)
                if named is None:
                    raise
                refused.add(named)
            else:
                self._refused |= refused  # remembered once going without has helped
                return self._parse(reply, drawn, n)

    def _parse(self, reply: Reply, drawn: Sampling, n: int) -> list[Generation]:
        try:
            answer = orjson.loads(reply.content)
            choices, usage = answer["choices"], answer.get("usage") or {}
            if not choices:
                raise ValueError("it has no choices")
            model = answer.get("model") or self.model
            sampled = usage.get("completion_tokens")
            common = {
                "model": model,
                "policy_version": self._version or versions.of_served(model) or versions.BASE,
                "sampling": drawn.model_dump(mode="json"),
                "latency_s": round(reply.latency_s, 4),
                "prompt_token_ids": answer.get("prompt_token_ids"),
                "prompt_tokens": usage.get("prompt_tokens"),
                "completion_tokens": sampled if len(choices) == 1 else None,
            }
            n_ids = sum(len(choice.get("token_ids") or ()) for choice in choices)
            return [_generation(choice, common, ids_whole=sampled in (None, n_ids)) for choice in choices[:n]]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            start = reply.content[:80].decode(errors="replace")
            raise ProtocolError(
                f"{shown(self.base_url)}, model {self.model!r}: answered {start!r}, "
                f"which is not a chat completion ({type(error).__name__}: {error}); "
                "base_url must be that of an OpenAI-compatible server and usually ends in /v1"
            ) from error


def _generation(choice: dict[str, Any], common: dict[str, Any], *, ids_whole: bool) -> Generation:
    message, ids = choice["message"], choice.get("token_ids")
    scored = (choice.get("logprobs") or {}).get("content")
    logprobs = None if scored is None else [entry["logprob"] for entry in scored]
    text, tool_calls = message.get("content") or "", message.get("tool_calls") or ()
    capability: Capability = "trainable-exact"
    note = None
    if not ids and not text and not tool_calls:
        capability, note = "eval-only", "the completion is empty"
    elif not ids or not common["prompt_token_ids"]:
        capability, note = "trainable-retokenised", "the endpoint returned no token ids"
    elif logprobs is None:
        capability, note = "trainable-retokenised", "the endpoint returned no logprobs"
    elif len(logprobs) != len(ids):
        capability, note = "eval-only", f"{len(ids)} token ids but {len(logprobs)} logprobs"
    elif not ids_whole:
        capability, note = "eval-only", "the number of token ids is not usage.completion_tokens: some were dropped"
    return Generation.model_validate(
        {
            **common,
            "text": text,
            "tool_calls": tool_calls,
            "token_ids": ids,
            "logprobs": None if capability == "eval-only" else logprobs,
            "completion_tokens": len(ids) if ids else common["completion_tokens"],
            "finish_reason": choice.get("finish_reason"),
            "capability": capability,
            "capability_note": note,
        }
    )
