"""One request for spans: rendered for the server, streamed if asked for, and placed in the tree."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from r3agent.episodes.checkpointed import running_config
from r3agent.episodes.collaborators import sampled
from r3agent.episodes.renderings import Rendered, Renderer
from r3agent.episodes.requests import SpanRequest
from r3agent.episodes.state import SpanSlot
from r3agent.policy import Policy, Sampling, sampling_of
from r3agent.records.json_values import copy_json
from r3agent.records.trajectory import Generation, Message, Span
from r3agent.telemetry.genai import ModelCall

Sample: TypeAlias = Callable[..., Awaitable[list[Generation]]]
Streamer: TypeAlias = Callable[[Sample, Sequence[Message], Sequence[SpanSlot]], Awaitable[list[Generation]]]


@dataclass(frozen=True)
class Sampler:
    """Sender of a graph's requests."""

    streamer: Streamer | None = None
    """Function that calls `sample` and writes every delta to LangGraph's streams."""
    renderer: Renderer = field(default_factory=Renderer)

    async def draw(
        self, policy: Policy, request: SpanRequest, slots: Sequence[SpanSlot], tools: Sequence[dict[str, Any]]
    ) -> list[Span]:
        """Sample a span for each slot with one request, which records the conversation that the endpoint took.

        Raises:
            PolicyError: the endpoint did not return them; a `ConversationError` if it refused the conversation.
        """
        n = len(slots)

        async def ask(rendered: Rendered) -> list[Generation]:
            settings = _without_calls(request.sampling) if rendered.forbids_calls else request.sampling
            own = copy_json(rendered.messages)  # a policy may change them, and the record must not
            sample: Sample = partial(policy.sample, own, n=n, tools=rendered.tools, sampling=settings)
            with _traced(policy, request, rendered, slots, is_stream=self.streamer is not None) as call:
                answer = _streamer_for(policy, self.streamer)(sample, rendered.messages, slots)
                generations = await sampled(policy, answer, n)
                call.answered(generations, [slot.span_id for slot in slots])
            return generations

        may_call = request.label != "reflect"
        generations, sent = await self.renderer.send(ask, request.messages, tools, may_call=may_call)
        place = {"label": request.label, "request": request.appended}
        if sent.messages != request.messages:
            place |= {"request": tuple(sent.messages), "standalone": True}
        return [
            Span.of(one, span_id=slot.span_id, parent_id=slot.parent_id, **place)
            for one, slot in zip(generations, slots, strict=True)
        ]


def _traced(
    policy: Policy, request: SpanRequest, rendered: Rendered, slots: Sequence[SpanSlot], *, is_stream: bool
) -> ModelCall:
    def fields() -> dict[str, Any]:
        settings = request.sampling or sampling_of(policy)
        return {**(settings.body() if settings else {}), "n": len(slots), "stream": is_stream}

    return ModelCall(
        str(getattr(policy, "model", "")),
        fields,
        rendered.messages,
        base_url=getattr(policy, "base_url", None),
        label=request.label,
        trajectory_id=slots[0].span_id if request.parent is None else None,
    )


def _streamer_for(policy: Policy, streamer: Streamer | None) -> Streamer:
    """Return the function that sends a request: without a streamer, LangChain's callbacks get its whole answers.

    A policy that cannot stream may be a LangChain model, whose calls reach the callbacks by themselves.
    """
    if streamer is not None:
        return streamer
    if not _has_callbacks() or "on_delta" not in inspect.signature(policy.sample).parameters:
        return lambda sample, messages, slots: sample()
    from r3agent.episodes.token_stream import report_spans

    return report_spans


def _has_callbacks() -> bool:
    """Return True if the running node has LangChain callbacks, e.g. of a tracer."""
    callbacks = running_config().get("callbacks")
    return bool(getattr(callbacks, "handlers", callbacks))


def _without_calls(sampling: Sampling | None) -> Sampling:
    """Return the settings of a request whose tools are not to be called."""
    given = sampling or Sampling(temperature=None, top_p=None, max_tokens=None)  # the policy has its own
    return given.model_copy(update={"extra": {**given.extra, "tool_choice": "none"}})
