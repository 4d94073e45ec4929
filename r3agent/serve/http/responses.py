"""Response bodies in vLLM's shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any
from uuid import uuid4

from r3agent.serve.engine.request import Chunk, GenerationRequest, PromptToken, SequenceState, TopLogprobs
from r3agent.serve.engine.text import Detokenizer


class Responses:
    """Builds the bodies of one completion request.

    Args:
        request: what was generated.
        model: the name that is answered with.
        prefix: of the id: `chatcmpl` or `cmpl`.
        token_ids: include them.
        logprobs: include them.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        model: str,
        prefix: str,
        detokenizer: Detokenizer,
        token_ids: bool,
        logprobs: bool,
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._token_ids = token_ids
        self._logprobs = logprobs
        self._head = {"id": f"{prefix}-{uuid4().hex}", "created": int(time.time()), "model": model}

    # ---- chat ----

    def chat(self) -> dict[str, Any]:
        request = self._request
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": sequence.index,
                    "message": {"role": "assistant", "content": self._text(sequence)},
                    "logprobs": self._chat_logprobs(sequence.token_ids, sequence.logprobs, sequence.top_logprobs),
                    "finish_reason": sequence.finish_reason,
                    "stop_reason": sequence.stop_reason,
                    "token_ids": sequence.token_ids if self._token_ids else None,
                }
                for sequence in request.sequences
            ],
            "usage": self.usage(),
            "prompt_logprobs": None,
            "prompt_token_ids": request.prompt_token_ids if self._token_ids else None,
        }

    def chat_starts(self) -> Iterator[dict[str, Any]]:
        """The first chunk of each choice: its role and the prompt."""
        prompt_token_ids = self._request.prompt_token_ids if self._token_ids else None
        for sequence in self._request.sequences:
            chunk = self._chat_chunk(sequence.index, {"role": "assistant", "content": ""}, None, None)
            yield {**chunk, "prompt_token_ids": prompt_token_ids}

    def chat_delta(self, chunk: Chunk) -> dict[str, Any]:
        logprobs = self._chat_logprobs(chunk.token_ids, chunk.logprobs, chunk.top_logprobs)
        body = self._chat_chunk(chunk.index, {"content": chunk.text}, logprobs, chunk.finish_reason)
        choice = body["choices"][0]
        choice["token_ids"] = list(chunk.token_ids) if self._token_ids else None
        if chunk.finish_reason is not None:
            choice["stop_reason"] = chunk.stop_reason
        return body

    def chat_usage(self) -> dict[str, Any]:
        """The last chunk, where it is asked for."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()}

    def _chat_chunk(self, index: int, delta: dict[str, str], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _chat_logprobs(
        self, token_ids_T: Sequence[int], logprobs_T: Sequence[float], tops_T: Sequence[TopLogprobs]
    ) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        entries = zip(token_ids_T, logprobs_T, tops_T, strict=True)
        return {
            "content": [
                {**self._token(token_id, logprob), "top_logprobs": [self._token(*pair) for pair in top]}
                for token_id, logprob, top in entries
            ]
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, utf8 = self._detokenizer.token(token_id)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": utf8}

    # ---- text completions ----

    def completion(self) -> dict[str, Any]:
        request = self._request
        return {
            **self._head,
            "object": "text_completion",
            "choices": [
                {
                    "index": sequence.index,
                    "text": self._text(sequence),
                    "logprobs": self._completion_logprobs(sequence),
                    "finish_reason": sequence.finish_reason,
                    "stop_reason": sequence.stop_reason,
                    "token_ids": sequence.token_ids if self._token_ids else None,
                    "prompt_logprobs": self._prompt_logprobs(),
                    "prompt_token_ids": request.prompt_token_ids if self._token_ids else None,
                }
                for sequence in request.sequences
            ],
            "usage": self.usage(),
        }

    def _completion_logprobs(self, sequence: SequenceState) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        tokens = [self._detokenizer.token(token_id)[0] for token_id in sequence.token_ids]
        pairs = zip(sequence.token_ids, sequence.logprobs, sequence.top_logprobs, strict=True)
        return {
            "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)),
            "token_logprobs": [max(logprob, -9999.0) for logprob in sequence.logprobs],
            "tokens": tokens,
            "top_logprobs": [
                {self._detokenizer.token(t)[0]: max(lp, -9999.0) for t, lp in [(token_id, logprob), *top]}
                for token_id, logprob, top in pairs
            ],
        }

    def _prompt_logprobs(self) -> list[dict[str, Any] | None] | None:
        scored = self._request.scored_prompt
        return None if scored is None else [None, *map(self._prompt_token, scored)]

    def _prompt_token(self, token: PromptToken) -> dict[str, Any]:
        ranked = [(token.token_id, token.logprob, token.rank)]
        ranked += [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(token.top_logprobs, 1)]
        return {
            str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": self._detokenizer.token(token_id)[0]}
            for token_id, logprob, rank in ranked
        }

    def _text(self, sequence: SequenceState) -> str:
        return self._detokenizer.text(sequence.visible_token_ids) if sequence.text is None else sequence.text.text

    def usage(self) -> dict[str, Any]:
        prompt = len(self._request.prompt_token_ids)
        completion = sum(len(sequence.token_ids) for sequence in self._request.sequences)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
