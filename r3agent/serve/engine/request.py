"""Generation requests, the n sequences of each, and the events that report their progress."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from r3agent.serve.engine.lora import Adapter
from r3agent.serve.engine.text import TextStream

FinishReason: TypeAlias = Literal["stop", "length", "abort"]

TopLogprobs: TypeAlias = list[tuple[int, float]]
"""Most likely tokens at one position, in descending order."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that one step added to one sequence of a streamed request."""

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[TopLogprobs, ...]
    text: str
    finish_reason: FinishReason | None
    stop_reason: int | str | None


Event: TypeAlias = Chunk | BaseException | None
"""Chunk of a stream, the error that ended the request, or `None` after all sequences have finished."""


@dataclass(frozen=True)
class PromptToken:
    """Logprob and rank of one prompt token, given those before it."""

    token_id: int
    logprob: float
    rank: int
    """Position among all tokens; 1 is the most likely."""
    top_logprobs: TopLogprobs


@dataclass(eq=False)
class GenerationRequest:
    """Request to continue one prompt `n` times. Field names are those of vLLM's sampling parameters."""

    prompt_token_ids: Sequence[int]
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_id: int | None = None
    """Member of `stop_token_ids` that is not reported as a stop reason."""
    allowed_token_ids: frozenset[int] = frozenset()
    """Tokens that may be sampled; empty allows all. Logprobs are reported as if all were allowed."""
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    """Number of most likely tokens to report with each prompt token; with `None` the prompt is not scored."""
    adapter: Adapter | None = None
    stream: bool = False
    on_event: Callable[[Event], object] = lambda event: None
    """Callback, called in the engine's thread."""

    error: Exception | None = field(default=None, init=False)
    """Error that ended the request."""
    sequences: list[SequenceState] = field(default_factory=list, init=False)
    scored_prompt: list[PromptToken] | None = field(default=None, init=False)
    """Scores from the second prompt token on, if `prompt_logprobs` is set."""

    @property
    def max_length(self) -> int:
        return len(self.prompt_token_ids) + self.max_tokens

    @property
    def is_finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)


@dataclass(eq=False)
class SequenceState:
    """State of one of the n completions of a request."""

    request: GenerationRequest
    index: int
    rng: random.Random
    text: TextStream | None
    """Decoder of its text, if a stop string or a stream needs it during generation."""
    token_ids: list[int] = field(default_factory=list, init=False)
    logprobs: list[float] = field(default_factory=list, init=False)
    top_logprobs: list[TopLogprobs] = field(default_factory=list, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    stop_reason: int | str | None = field(default=None, init=False)
    _streamed: int = field(default=0, init=False)

    @property
    def position(self) -> int:
        """Position of the last token, which is the next step's input."""
        return len(self.request.prompt_token_ids) + len(self.token_ids) - 1

    @property
    def visible_token_ids(self) -> list[int]:
        """Return the sampled tokens without the one that ended the turn."""
        ended = self.token_ids and self.token_ids[-1] in self.request.stop_token_ids
        return self.token_ids[:-1] if ended else self.token_ids

    def append(self, token_id: int, logprob: float, top_logprobs: TopLogprobs) -> None:
        """Add a sampled token, and finish if it is the last."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.top_logprobs.append(top_logprobs)
        request = self.request
        if token_id in request.stop_token_ids:
            self.finish("stop", None if token_id == request.eos_token_id else token_id)
        elif self.text is not None and (found := self.text.append(token_id)) is not None:
            self.finish("stop", found)
        elif len(self.token_ids) >= request.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        self.finish_reason = reason
        self.stop_reason = stop_reason
        if self.text is not None:
            self.text.finish(stopped=isinstance(stop_reason, str))

    def fail(self, error: Exception) -> None:
        """End the sequence with an error that fails its whole request."""
        self.request.error = error
        self.finish("abort")

    def chunk(self) -> Chunk:
        """Return the tokens and text since the last chunk."""
        new = slice(self._streamed, len(self.token_ids))
        self._streamed = len(self.token_ids)
        return Chunk(
            index=self.index,
            token_ids=tuple(self.token_ids[new]),
            logprobs=tuple(self.logprobs[new]),
            top_logprobs=tuple(self.top_logprobs[new]),
            text="" if self.text is None else self.text.take_new_text(),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
