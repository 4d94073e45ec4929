"""Response bodies in vLLM's format."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from uuid import uuid4

from r3agent.serve.engine.request import Chunk, FinishReason, GenerationRequest, PromptToken, SequenceState, TopLogprobs
from r3agent.serve.engine.text import Detokenizer
from r3agent.serve.http.tool_calls import CallReader


@dataclass
class Responses:
    """Builder of response bodies for one completion request."""

    request: GenerationRequest
    model: str
    """Model name in the response."""
    detokenizer: Detokenizer
    token_ids: bool
    """Include token ids."""
    logprobs: bool
    """Include logprobs."""
    read_calls: bool = False
    """Read the replies for tool calls."""
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid4().hex)
    _readers: dict[int, CallReader] = field(default_factory=lambda: defaultdict(CallReader), init=False)
    """Reader of each choice."""

    def _body(self, prefix: str, kind: str) -> dict[str, Any]:
        return {"id": f"{prefix}-{self.id}", "created": self.created, "model": self.model, "object": kind}

    def _choice(self, sequence: SequenceState, **content: Any) -> dict[str, Any]:
        return {
            "index": sequence.index,
            **content,
            "finish_reason": self._finish_reason(sequence.index, sequence.finish_reason),
            "stop_reason": sequence.stop_reason,
            "token_ids": sequence.token_ids if self.token_ids else None,
        }

    def usage(self) -> dict[str, Any]:
        prompt = len(self.request.prompt_token_ids)
        completion = sum(len(sequence.token_ids) for sequence in self.request.sequences)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _prompt_token_ids(self) -> Sequence[int] | None:
        return self.request.prompt_token_ids if self.token_ids else None

    def _text(self, sequence: SequenceState) -> str:
        return self.detokenizer.text(sequence.visible_token_ids) if sequence.text is None else sequence.text.text

    # ---- chat ----

    def chat(self) -> dict[str, Any]:
        return {
            **self._body("chatcmpl", "chat.completion"),
            "choices": [
                self._choice(
                    sequence,
                    message=self._message(sequence),
                    logprobs=self._chat_logprobs(sequence.token_ids, sequence.logprobs, sequence.top_logprobs),
                )
                for sequence in self.request.sequences
            ],
            "usage": self.usage(),
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt_token_ids(),
        }

    def _message(self, sequence: SequenceState) -> dict[str, Any]:
        text = self._text(sequence)
        if not self.read_calls:
            return {"role": "assistant", "content": text}
        content, calls = self._readers[sequence.index].read(text, last=True)
        called = {"content": content or None, "tool_calls": calls} if calls else {"content": content}
        return {"role": "assistant", **called}

    def _delta(self, chunk: Chunk) -> dict[str, Any]:
        if not self.read_calls:
            return {"content": chunk.text}
        reader = self._readers[chunk.index]
        earlier = reader.n_calls
        content, calls = reader.read(chunk.text, last=chunk.finish_reason is not None)
        called = {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls, earlier)]} if calls else {}
        return {"content": content, **called}

    def _finish_reason(self, index: int, reason: FinishReason | None) -> str | None:
        return "tool_calls" if reason == "stop" and self._readers[index].n_calls else reason

    def chat_starts(self) -> Iterator[dict[str, Any]]:
        """Yield the first chunk of each choice: its role and the prompt."""
        for sequence in self.request.sequences:
            chunk = self._chat_chunk(sequence.index, {"role": "assistant", "content": ""}, None, None)
            yield {**chunk, "prompt_token_ids": self._prompt_token_ids()}

    def chat_delta(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = self._chat_logprobs(chunk.token_ids, chunk.logprobs, chunk.top_logprobs)
        body = self._chat_chunk(
            chunk.index, self._delta(chunk), logprobs, self._finish_reason(chunk.index, chunk.finish_reason)
        )
        choice = body["choices"][0]
        choice["token_ids"] = list(chunk.token_ids) if self.token_ids else None
        if chunk.finish_reason is not None:
            choice["stop_reason"] = chunk.stop_reason
        return body

    def chat_usage(self) -> dict[str, Any]:
        """Make the last chunk, which has the usage."""
        return {**self._body("chatcmpl", "chat.completion.chunk"), "choices": [], "usage": self.usage()}

    def _chat_chunk(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._body("chatcmpl", "chat.completion.chunk"), "choices": [choice]}

    def _chat_logprobs(
        self, token_ids_T: Sequence[int], logprobs_T: Sequence[float], tops_T: Sequence[TopLogprobs]
    ) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        entries = zip(token_ids_T, logprobs_T, tops_T, strict=True)
        return {
            "content": [
                {**self._token(token_id, logprob), "top_logprobs": [self._token(*pair) for pair in top]}
                for token_id, logprob, top in entries
            ]
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, utf8 = self.detokenizer.token(token_id)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": utf8}

    # ---- text completions ----

    def completion(self) -> dict[str, Any]:
        prompt = {"prompt_logprobs": self._prompt_logprobs(), "prompt_token_ids": self._prompt_token_ids()}
        return {
            **self._body("cmpl", "text_completion"),
            "choices": [
                self._choice(sequence, text=self._text(sequence), logprobs=self._completion_logprobs(sequence)) | prompt
                for sequence in self.request.sequences
            ],
            "usage": self.usage(),
        }

    def _completion_logprobs(self, sequence: SequenceState) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        tokens = [self.detokenizer.token(token_id)[0] for token_id in sequence.token_ids]
        pairs = zip(sequence.token_ids, sequence.logprobs, sequence.top_logprobs, strict=True)
        return {
            "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)),
            "token_logprobs": [max(logprob, -9999.0) for logprob in sequence.logprobs],
            "tokens": tokens,
            "top_logprobs": [
                {self.detokenizer.token(t)[0]: max(lp, -9999.0) for t, lp in [(token_id, logprob), *top]}
                for token_id, logprob, top in pairs
            ],
        }

    def _prompt_logprobs(self) -> list[dict[str, Any] | None] | None:
        scored = self.request.scored_prompt
        return None if scored is None else [None, *map(self._prompt_token, scored)]

    def _prompt_token(self, token: PromptToken) -> dict[str, Any]:
        ranked = [(token.token_id, token.logprob, token.rank)]
        ranked += [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(token.top_logprobs, 1)]
        return {
            str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": self.detokenizer.token(token_id)[0]}
            for token_id, logprob, rank in ranked
        }
