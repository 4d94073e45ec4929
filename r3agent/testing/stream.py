"""A chat completion as the server-sent events of its stream."""

from __future__ import annotations

import json
from typing import Any

from r3agent.testing.faults import Json

PIECES = 3
"""Chunks of text that each choice comes in."""


def as_stream(completion: Json, *, usage: bool) -> str:
    """The events, each choice in `PIECES` with its tokens, one after the other.

    Args:
        usage: a last chunk without choices has the usage, as `stream_options.include_usage` asks for.
    """
    head = {"object": "chat.completion.chunk", "model": completion["model"]}
    first = {key: completion[key] for key in ("prompt_token_ids",) if key in completion}
    chunks: list[Json] = []
    for choice in completion["choices"]:
        for i in range(PIECES):
            chunks.append({**head, **(first if not chunks else {}), "choices": [_piece(choice, i)]})
        chunks.append({**head, "choices": [{**_end(choice)}]})
    if usage:
        chunks.append({**head, "choices": [], "usage": completion["usage"]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _piece(choice: Json, i: int) -> Json:
    text, ids = choice["message"]["content"] or "", choice.get("token_ids")
    scored = (choice.get("logprobs") or {}).get("content")
    piece: Json = {"index": choice["index"], "delta": {"content": _part(text, i)}, "finish_reason": None}
    if ids is not None:
        piece["token_ids"] = _part(ids, i)
    if scored is not None:
        piece["logprobs"] = {"content": _part(scored, i)}
    return piece


def _end(choice: Json) -> Json:
    calls = [{"index": i, **call} for i, call in enumerate(choice["message"].get("tool_calls") or ())]
    delta = {"tool_calls": calls} if calls else {}
    return {"index": choice["index"], "delta": delta, "finish_reason": choice["finish_reason"]}


def _part(whole: Any, i: int) -> Any:
    """The i-th of `PIECES`."""
    size = -(-len(whole) // PIECES)
    return whole[i * size : (i + 1) * size]
