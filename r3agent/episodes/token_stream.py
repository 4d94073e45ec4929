"""Spans while they are drawn: each piece of text, labelled with its span, through LangGraph's streams.

`build_graph(..., stream=True)` draws with streaming requests, and every piece is seen

- as a `Delta` by `stream_mode="custom"`;
- as a chunk of a chat model's message by `stream_mode="messages"`, `astream_events` of any version, and tracers. The
  message's id is the span's; its run is named after the label and its metadata are the `Delta` without the piece.

The record is the same as without. Importing this loads LangChain's chat models, so `build_graph` does it when asked to
stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, ToolCallChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks
from langgraph.config import get_stream_writer
from pydantic import PrivateAttr

from r3agent._util.aio import gather_all
from r3agent.episodes.state import Delta, Place
from r3agent.records.trajectory import Generation, Message


async def told(
    sample: Callable[..., Awaitable[list[Generation]]], messages: Sequence[Message], places: Sequence[Place]
) -> list[Generation]:
    """What `sample` draws, one for each place, telling of every piece as it comes."""
    write = get_stream_writer()
    runs = [_SpanModel.of(place) for place in places]

    def on_delta(choice: int, text: str) -> None:
        write(Delta(**places[choice]._asdict(), delta=text))
        runs[choice].take(text)

    async def draw() -> list[Generation]:
        try:
            drawn = await sample(on_delta=on_delta)
        except Exception as error:
            for run in runs:
                run.take(error)
            raise
        for run, generation in zip(runs, drawn, strict=True):
            run.take(generation)
        return drawn

    async def follow(run: _SpanModel, place: Place) -> list[Generation]:
        await run.ainvoke(list(messages), {"run_name": place.label, "metadata": place._asdict()})
        return []

    drawn, *_ = await gather_all([draw(), *(follow(run, place) for run, place in zip(runs, places, strict=True))])
    return drawn


class _SpanModel(BaseChatModel):
    """A chat model to LangChain's eyes, which says what the policy says of one span."""

    cache: BaseCache | bool | None = False  # an answer of the policy is never another's
    span_id: str
    _pieces: asyncio.Queue[str | Generation | Exception] = PrivateAttr(default_factory=asyncio.Queue)

    @classmethod
    def of(cls, place: Place) -> _SpanModel:
        return cls(span_id=place.span_id)

    def take(self, piece: str | Generation | Exception) -> None:
        """A piece of text; the whole generation, or what went wrong, is the last."""
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
        assert whole is not None  # the last chunk is always there
        return ChatResult(generations=[whole])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        while isinstance(piece := await self._pieces.get(), str):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece, id=self.span_id))
        if isinstance(piece, Exception):
            raise piece
        yield ChatGenerationChunk(message=_last(piece, self.span_id))


def _last(generation: Generation, span_id: str) -> AIMessageChunk:
    """What follows the text: tool calls, and what the endpoint said of the whole."""
    calls = [
        ToolCallChunk(id=call.get("id"), index=index, **_function(call))
        for index, call in enumerate(generation.tool_calls)
    ]
    return AIMessageChunk(
        content="",
        id=span_id,
        tool_call_chunks=calls,
        response_metadata={"model_name": generation.model, "finish_reason": generation.finish_reason},
        chunk_position="last",
    )


def _function(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    return {"name": function.get("name"), "args": function.get("arguments")}
