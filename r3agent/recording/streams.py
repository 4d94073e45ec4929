"""Streams of the SDK that are recorded while the application reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import dropwhile
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from r3agent.recording.answers import is_blank
from r3agent.recording.call import RecordedCall


def observed(call: RecordedCall, again: Callable[[], Any] | None) -> type[openai.Stream[ChatCompletionChunk]]:
    """Make the class of a stream that is recorded while it is read.

    Args:
        again: sends the request once more and returns its stream; `None` if the application has the response.
    """

    class Observed(openai.Stream[ChatCompletionChunk]):
        def __stream__(self) -> Iterator[ChatCompletionChunk]:
            n_seen, refused = 0, False
            try:
                for chunk in super().__stream__():
                    if refused := again is not None and call.refuses_at(chunk):
                        break
                    if call.add(chunk):
                        n_seen += 1
                        yield chunk
                refused = again is not None and (refused or call.ends_empty())
            except Exception as error:
                if again is None or not call.breaks(error):
                    raise
                refused = True
            if refused and again is not None:
                self.response.close()
                fresh = again()
                self.response = fresh.response
                # The application has the role already.
                yield from dropwhile(is_blank, fresh) if n_seen else fresh
            call.end_stream()

    return Observed


def observed_async(
    call: RecordedCall, again: Callable[[], Awaitable[Any]] | None
) -> type[openai.AsyncStream[ChatCompletionChunk]]:
    """Make the class of an async stream; see `observed`."""

    class Observed(openai.AsyncStream[ChatCompletionChunk]):
        async def __stream__(self) -> AsyncIterator[ChatCompletionChunk]:
            n_seen, refused = 0, False
            try:
                async for chunk in super().__stream__():
                    if refused := again is not None and call.refuses_at(chunk):
                        break
                    if call.add(chunk):
                        n_seen += 1
                        yield chunk
                refused = again is not None and (refused or call.ends_empty())
            except Exception as error:
                if again is None or not call.breaks(error):
                    raise
                refused = True
            if refused and again is not None:
                await self.response.aclose()
                fresh = await again()
                self.response = fresh.response
                async for chunk in fresh:
                    if n_seen and is_blank(chunk):
                        continue  # the application has the role already
                    n_seen = 0
                    yield chunk
            call.end_stream()

    return Observed
