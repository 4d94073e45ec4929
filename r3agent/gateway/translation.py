"""Streamed chat completions as a sequence of blocks: thinking, text and tool calls, one after another.

A whole answer is translated as a stream of one chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from r3agent.errors import ProtocolError
from r3agent.gateway.dialect import Body, Event
from r3agent.gateway.history import is_json_object
from r3agent.http.body import find_error, finish_reason, read_body
from r3agent.policy.deltas import add_calls
from r3agent.records.json_values import well_formed
from r3agent.records.reply import normal_calls, read_reply

Kind: TypeAlias = Literal["thinking", "text", "call"]

STOPPED_BY = ("stop_reason", "matched_stop", "stopping_word")
"""Fields of a choice with the stop string that ended it, of vLLM, SGLang and llama.cpp."""

MALFORMED = (KeyError, TypeError, AttributeError, ValueError, IndexError)
"""Errors of reading an answer that is not a chat completion."""
NOT_CHAT = 502, "the upstream's answer is not a chat completion"


class Tokens(NamedTuple):
    """Numbers of tokens of an answer."""

    prompt: int = 0
    cached: int = 0
    """Tokens of the prompt that came from a cache."""
    sampled: int = 0
    thinking: int = 0
    """Sampled tokens of the thinking, if the server counts them."""


class Translation(ABC):
    """Translation of one answer; a dialect defines the events of its blocks."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.tokens: Tokens | None = None
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        """Stop string that ended the answer."""
        self.has_called = False
        """True if the answer has a tool call."""
        self._failure = 502, "the upstream's stream ended before the answer did"
        """Status and message of the error of an answer without a finish reason, or that is broken."""
        self._is_broken = False
        self._has_begun = False
        self._kind: Kind | None = None
        """Kind of the open block."""
        self._calls: list[Body] = []
        self._n_begun = 0
        """Number of calls whose block was opened."""
        self._n_sent = 0
        """Number of characters of the open call's arguments that were sent."""
        self._half = ""
        """First half of a surrogate pair, whose second is in the next chunk."""
        self._held: list[tuple[Kind, str]] = []
        """Text that came in the middle of a call."""

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """Translate one chunk; only the first choice is read, because the other APIs have one."""
        try:
            yield from self._take(chunk)
        except MALFORMED:
            self._failure, self._is_broken = NOT_CHAT, True

    def _take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        if (error := find_error(chunk)) is not None:
            read = read_body(error)
            self._failure, self._is_broken = (read.status, read.message), True
            return
        self.model = str(chunk.get("model") or "") or self.model
        self.tokens = _tokens(chunk["usage"]) if chunk.get("usage") else self.tokens
        yield from self._ensure_begun()
        for choice in chunk.get("choices") or ():
            if isinstance(choice, Mapping) and not choice.get("index"):
                yield from self._take_choice(choice)

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        """Translate a whole answer.

        Raises:
            ProtocolError: it is not a chat completion.
        """
        self._failure = NOT_CHAT
        try:
            self._take_whole(answer)
        except MALFORMED:
            self._is_broken = True
        if self._is_broken:
            raise ProtocolError(self._failure[1])

    def _take_whole(self, answer: Mapping[str, Any]) -> None:
        choices: list[Body] = []
        for choice in answer.get("choices") or ():
            message = dict(choice.get("message") or {})
            calls = normal_calls(message.pop("tool_calls", None) or message.pop("function_call", None) or ())
            message["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
            choices.append({**choice, "delta": message, "finish_reason": finish_reason(choice) or "stop"})
        for _ in (*self.take({**answer, "choices": choices}), *self.end()):
            pass

    def end(self) -> Iterator[Event]:
        """Close the answer; one without anything has an empty text, and one without a finish reason has failed."""
        yield from self._ensure_begun()
        if self._is_broken or self.finish_reason is None:
            yield from self.fail(*self._failure)
            return
        yield from self._flush_calls(is_end=True)
        held, self._held = self._held, []
        for kind, text in held:
            yield from self._add_text(kind, text, ())
        if self._kind is None:
            yield from self._switch("text")
        yield from self._close()
        yield from self._finish()

    @abstractmethod
    def fail(self, status: int, message: str, kind: str | None = None) -> Iterator[Event]:
        """Close the answer with an error."""

    # ---- events of the dialect ----

    @abstractmethod
    def _begin(self) -> Iterator[Event]:
        """Begin the answer."""

    @abstractmethod
    def _open(self, kind: Kind, call: Body | None) -> Iterator[Event]:
        """Open a block."""

    @abstractmethod
    def _add(self, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        """Add text to the open block; that of a call is a piece of its arguments."""

    @abstractmethod
    def _close(self) -> Iterator[Event]:
        """Close the open block."""

    @abstractmethod
    def _finish(self) -> Iterator[Event]:
        """End the answer."""

    # ---- the chunks ----

    def _ensure_begun(self) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            yield from self._begin()

    def _take_choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        delta: Body = dict(choice.get("delta") or choice.get("message") or {})
        calls = delta.pop("tool_calls", None) or delta.pop("function_call", None)
        reply = read_reply(delta)
        if reply.reasoning is not None:
            yield from self._add_text("thinking", reply.reasoning[1], ())
        if reply.text:
            logprobs = (choice.get("logprobs") or {}).get("content") or ()
            yield from self._add_text("text", reply.text, logprobs)
        if calls:
            add_calls(self._calls, calls)
            yield from self._flush_calls()
        if (reason := finish_reason(choice)) is not None:
            self.finish_reason = reason
            self.stop_string = next((choice[f] for f in STOPPED_BY if isinstance(choice.get(f), str)), None)

    def _add_text(self, kind: Kind, text: str, logprobs: Sequence[Any]) -> Iterator[Event]:
        text, self._half = _split_half(self._half + text)
        if self._kind == "call" and not self._is_call_whole:
            self._held.append((kind, text))
            return
        if self._kind != kind:
            yield from self._switch(kind)
        if text:
            yield from self._add(well_formed(text), logprobs)

    def _flush_calls(self, *, is_end: bool = False) -> Iterator[Event]:
        """Send what is known of the calls, one after another: the next begins where the arguments of one are whole."""
        while True:
            if self._kind == "call":
                arguments = self._calls[self._n_begun - 1]["function"]["arguments"]
                piece, half = _split_half(arguments[self._n_sent :])
                self._n_sent = len(arguments) - len(half)
                if piece:
                    yield from self._add(well_formed(piece), ())
            if self._n_begun == len(self._calls):
                return
            call = self._calls[self._n_begun]
            is_due = call["function"]["name"] and (self._kind != "call" or self._is_call_whole)
            if not (is_end or is_due):
                return
            self._n_begun, self._n_sent, self.has_called = self._n_begun + 1, 0, True
            (normal,) = normal_calls(call, salt=str(id(self)))
            yield from self._switch("call", {**call, "id": normal["id"]})

    @property
    def _is_call_whole(self) -> bool:
        return is_json_object(self._calls[self._n_begun - 1]["function"]["arguments"])

    def _switch(self, kind: Kind, call: Body | None = None) -> Iterator[Event]:
        if self._kind is not None:
            yield from self._close()
        self._kind = kind
        yield from self._open(kind, call)


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    details = [usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion")]
    counts = (
        *(usage.get("prompt_tokens"), details[0].get("cached_tokens")),
        *(usage.get("completion_tokens"), details[1].get("reasoning_tokens")),
    )
    return Tokens(*(int(count or 0) for count in counts))


def _split_half(text: str) -> tuple[str, str]:
    """Split the first half of a surrogate pair from the end of a text."""
    return (text[:-1], text[-1]) if "\ud800" <= text[-1:] <= "\udbff" else (text, "")
