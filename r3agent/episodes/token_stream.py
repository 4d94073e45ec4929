"""Token streaming: every delta, labelled with its span, through LangGraph's streams.

`build_graph(..., stream=True)` sends streaming requests, and every delta appears

- in `stream_mode="custom"` as a `TokenDelta`;
- in `stream_mode="messages"`, `astream_events` of any version, and tracers as a chunk of a chat model's message. The
  message has the span's id; its run has the label as its name and the `TokenDelta` without the text as its metadata.

The record is the same as without streaming. Without `stream=True` callbacks, e.g. of tracers, get each span's whole
message when it is there. Messages have the usage. Importing this module loads LangChain's chat models, so it is
imported only where it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, ToolCallChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks
from langgraph.config import get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from pydantic import PrivateAttr

from r3agent._util.aio import gather_all
from r3agent.episodes.state import SpanSlot, TokenDelta
from r3agent.records.trajectory import Generation, Message


async def stream_spans(
    sample: Callable[..., Awaitable[list[Generation]]], messages: Sequence[Message], slots: Sequence[SpanSlot]
) -> list[Generation]:
    """Sample one generation for each slot, and stream every delta as it arrives."""
    write = get_stream_writer()
    runs = [_SpanModel(span_id=slot.span_id) for slot in slots]

    def on_delta(choice: int, text: str) -> None:
        write(TokenDelta(**slots[choice]._asdict(), delta=text))
        runs[choice].take(text)

    return await _replay(sample(on_delta=on_delta), runs, messages, slots, [])


async def report_spans(
    sample: Callable[..., Awaitable[list[Generation]]], messages: Sequence[Message], slots: Sequence[SpanSlot]
) -> list[Generation]:
    """Sample one generation for each slot, and give each to the callbacks once it is whole."""
    runs = [_SpanModel(span_id=slot.span_id) for slot in slots]
    return await _replay(sample(), runs, messages, slots, [TAG_NOSTREAM])


async def _replay(
    answer: Awaitable[list[Generation]],
    runs: Sequence[_SpanModel],
    messages: Sequence[Message],
    slots: Sequence[SpanSlot],
    tags: list[str],
) -> list[Generation]:
    async def draw() -> list[Generation]:
        try:
            drawn = await answer
        except Exception as error:
            for run in runs:
                run.take(error)
            raise
        for run, generation in zip(runs, drawn, strict=True):
            run.take(generation)
        return drawn

    async def follow(run: _SpanModel, slot: SpanSlot) -> list[Generation]:
        await run.ainvoke(list(messages), {"run_name": slot.label, "metadata": slot._asdict(), "tags": tags})
        return []

    drawn, *_ = await gather_all([draw(), *(follow(run, slot) for run, slot in zip(runs, slots, strict=True))])
    return drawn


class _SpanModel(BaseChatModel):
    """LangChain chat-model adapter that replays one span's tokens."""

    cache: BaseCache | bool | None = False  # a cached response would belong to another span
    span_id: str
    _pieces: asyncio.Queue[str | Generation | Exception] = PrivateAttr(default_factory=asyncio.Queue)

    def take(self, piece: str | Generation | Exception) -> None:
        """Add a delta, or end the stream with the whole generation or an error."""
        self._pieces.put_nowait(piece)

    @property
    def _llm_type(self) -> str:
        return "r3agent"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("it is only ever awaited")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        whole = merge_chat_generation_chunks([chunk async for chunk in self._astream(messages)])
        assert whole is not None  # `_astream` always yields a last chunk
        return ChatResult(generations=[whole])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        has_text = False
        while isinstance(piece := await self._pieces.get(), str):
            has_text = True
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece, id=self.span_id))
        if isinstance(piece, Exception):
            raise piece
        yield ChatGenerationChunk(message=_last(piece, self.span_id, "" if has_text else piece.text))


def _last(generation: Generation, span_id: str, text: str) -> AIMessageChunk:
    """Make the last chunk: text that was not streamed, tool calls, usage, model and finish reason."""
    calls = [
        ToolCallChunk(id=call.get("id"), index=index, **_function(call))
        for index, call in enumerate(generation.tool_calls)
    ]
    sent, got, usage = generation.prompt_tokens, generation.completion_tokens, None
    if sent is not None and got is not None:
        usage = UsageMetadata(input_tokens=sent, output_tokens=got, total_tokens=sent + got)
    return AIMessageChunk(
        content=text,
        id=span_id,
        tool_call_chunks=calls,
        usage_metadata=usage,
        response_metadata={"model_name": generation.model, "finish_reason": generation.finish_reason},
        chunk_position="last",
    )


def _function(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {"name": function.get("name"), "args": function.get("arguments")}
