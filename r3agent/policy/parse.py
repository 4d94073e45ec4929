"""Parse a chat completion and grade how trainable it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r3agent.http.errors import redact_key
from r3agent.records.sampling import left_to_server, reshaping
from r3agent.records.thinking import find_reasoning
from r3agent.records.trajectory import Capability, Generation

Json = Mapping[str, Any]

NOT_A_COMPLETION = (KeyError, TypeError, AttributeError, ValueError)
"""Errors of parsing an answer that is not a chat completion."""

UNKNOWN_VERSION = (
    "nobody knows which version it is of: the weights were swapped while it was generated, or the server has restarted "
    "and does not name its weights until the next deploy"
)


def not_a_completion(error: Exception, content: bytes, api_key: str | None) -> str:
    """Say why an answer, which is a stream if it has no content, is not a chat completion; the key is not shown."""
    beginning = redact_key(content.decode(errors="replace"), api_key)[:80]
    answer = f"answered {beginning!r}, which" if content else "the stream"
    return redact_key(f"{answer} is not a chat completion ({type(error).__name__}: {error})", api_key)


def generations(answer: Json, common: Json, n: int, request: Json | None = None) -> list[Generation]:
    """Parse the first `n` choices of a response body.

    Args:
        common: fields of all generations that are not in the body: `policy_version`, `sampling`, `latency_s`, and the
            default of `model`.
        request: body of the request, from which each generation is graded; default: one with nothing unusual.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it is not a chat completion.
    """
    choices, usage = answer["choices"], answer.get("usage") or {}
    if not choices:
        raise ValueError("it has no choices")
    sampled = usage.get("completion_tokens")
    shared = {
        **common,
        "model": answer.get("model") or common["model"],
        "prompt_token_ids": answer.get("prompt_token_ids"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": sampled if len(choices) == 1 else None,
    }
    n_ids = sum(len(choice.get("token_ids") or ()) for choice in choices)
    is_lossy = n_ids and sampled not in (None, n_ids)
    lost = "the number of token ids is not usage.completion_tokens: some were dropped" if is_lossy else None
    flaw = "; ".join(filter(None, [reshaping(request or {}), lost])) or None
    left = None if request is None else ", ".join(left_to_server(request))
    caveat = left and f"the server decided on {left}; r3agent doctor tests whether it samples as its logprobs say"
    return [_generation(choice, shared, flaw, caveat) for choice in choices[:n]]


def _generation(choice: Json, shared: Json, flaw: str | None, caveat: str | None) -> Generation:
    message, ids = choice["message"], choice.get("token_ids")
    token_logprobs = (choice.get("logprobs") or {}).get("content")
    logprobs = None if token_logprobs is None else [entry["logprob"] for entry in token_logprobs]
    text, tool_calls = message.get("content") or "", message.get("tool_calls") or ()
    reasoning = find_reasoning(message)
    capability, note = _grade(bool(text or tool_calls or reasoning), ids, logprobs, shared, flaw, caveat)
    if reasoning is not None and capability == "trainable-retokenised":
        capability, note = "eval-only", f"{note}, and its text lacks the thinking: it is not what was sampled"
    return Generation.model_validate(
        {
            **shared,
            "text": text,
            **({} if reasoning is None else {"reasoning_field": reasoning[0], "reasoning": reasoning[1]}),
            "tool_calls": tool_calls,
            "token_ids": ids,
            "logprobs": None if capability == "eval-only" else logprobs,
            "completion_tokens": len(ids) if ids else shared["completion_tokens"],
            "finish_reason": choice.get("finish_reason"),
            "capability": capability,
            "capability_note": note,
        }
    )


def _grade(
    has_content: bool,
    ids: list[int] | None,
    logprobs: list[float] | None,
    shared: Json,
    flaw: str | None,
    caveat: str | None,
) -> tuple[Capability, str | None]:
    """Grade a choice, with the reason why it is not trainable-exact, or with a caveat if it is.

    Args:
        flaw: defect of the whole response.
        caveat: doubt about the whole response.
    """
    if not ids and not has_content:
        return "eval-only", "the completion is empty"
    if shared.get("policy_version") is None:
        return "eval-only", UNKNOWN_VERSION
    if not ids or not shared["prompt_token_ids"]:
        return "trainable-retokenised", "; ".join(filter(None, ["the endpoint returned no token ids", flaw]))
    if logprobs is None:
        return "trainable-retokenised", "; ".join(filter(None, ["the endpoint returned no logprobs", flaw]))
    if len(logprobs) != len(ids):
        return "eval-only", f"{len(ids)} token ids but {len(logprobs)} logprobs"
    if flaw is not None:
        return "eval-only", flaw
    return "trainable-exact", caveat or None
