"""Server-sent events of a streamed chat completion."""

from __future__ import annotations

import json
from typing import Any

from r3agent.testing.faults import Json
from r3agent.testing.tokens import pieces


def as_stream(completion: Json, *, usage: bool) -> str:
    """Render the events, word by word with their tokens, one choice after another.

    Args:
        usage: add a last chunk with the usage, if there is one, and no choices, as for
            `stream_options.include_usage`.
    """
    head = {"object": "chat.completion.chunk", "model": completion["model"]}
    first = {key: completion[key] for key in ("prompt_token_ids",) if key in completion}
    chunks: list[Json] = []
    for choice in completion["choices"]:
        content = choice["message"].get("content") or ""
        words = [content] if isinstance(content, list) else pieces(content) or [""]
        for i, word in enumerate(words):
            chunks.append({**head, **(first if not chunks else {}), "choices": [_piece(choice, word, i, len(words))]})
        chunks.append({**head, "choices": [_end(choice)]})
    if usage and "usage" in completion:
        chunks.append({**head, "choices": [], "usage": completion["usage"]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _piece(choice: Json, word: str | list[Json], i: int, n: int) -> Json:
    """Make the i-th of `n` pieces, with its share of the tokens; the first also has the rest of the message."""
    apart = {key: value for key, value in choice["message"].items() if key not in ("content", "tool_calls")}
    piece: Json = {"index": choice["index"], "delta": {**(apart if i == 0 else {}), "content": word}}
    if (ids := choice.get("token_ids")) is not None:
        piece["token_ids"] = _part(ids, i, n)
    if isinstance(logprobs := choice.get("logprobs"), dict) and "content" in logprobs:
        piece["logprobs"] = {"content": _part(logprobs["content"], i, n)}
    return {**piece, "finish_reason": None}


def _end(choice: Json) -> Json:
    calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls") or ())]
    delta = {"tool_calls": calls} if calls else {}
    return {"index": choice["index"], "delta": delta, "finish_reason": choice["finish_reason"]}


def _part(whole: list[Any], i: int, n: int) -> list[Any]:
    size = -(-len(whole) // n)
    return whole[i * size : (i + 1) * size]
