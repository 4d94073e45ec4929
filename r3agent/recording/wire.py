"""JSON of chat completions: the fields that a record needs, and the answer without what they add to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

WHOLE = ("stop", "length", "tool_calls", "content_filter")
"""Finish reasons of whole choices."""

SAMPLING_FIELDS = {
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
    *("response_format", "tool_choice", "reasoning_effort"),
}
"""Request fields that are recorded with the spans; others may contain private data."""

INNOCENT = (401, 402, 407, 429)
"""Statuses that no field causes, unless the error names one."""

TRANSIENT = (408, 409, 502, 503, 504, 529)
"""Statuses of a busy server, which an endpoint that has taken the fields before does not have because of them."""

UNREMEMBERED = (*TRANSIENT, None)
"""Statuses after which the next request has the fields again, although one without them succeeded."""


def wanted_fields(body: Mapping[str, Any], *, is_stream: bool) -> dict[str, Any]:
    """Return the fields of a request that the record needs, without those that it has."""
    wanted: dict[str, Any] = {name: True for name in ("logprobs", "return_token_ids") if not body.get(name)}
    options: Any = body.get("stream_options") or {}
    if is_stream and isinstance(options, Mapping) and not options.get("include_usage"):
        wanted["stream_options"] = {**options, "include_usage": True}
    return wanted


def fit(answer: Any, added: Collection[str]) -> Any:
    """Return an answer or event without the effect of added fields, by itself unchanged; `None` if nothing is left."""
    if not isinstance(answer, dict) or not added:
        return answer
    fitted: dict[str, Any] = dict(answer)
    if "stream_options" in added and fitted.get("usage", True) is None:
        del fitted["usage"]
    choices: Any = fitted.get("choices")
    if "stream_options" in added and not choices and fitted.get("usage") is not None:
        return None
    if isinstance(choices, list):
        fitted["choices"] = [_fit_choice(choice, added) for choice in choices]
    if "return_token_ids" in added:
        fitted.pop("prompt_token_ids", None)
    return fitted


def _fit_choice(choice: Any, added: Collection[str]) -> Any:
    if not isinstance(choice, dict):
        return choice
    fitted: dict[str, Any] = dict(choice)
    if "logprobs" in added and fitted.get("logprobs") is not None:
        fitted["logprobs"] = None
    if "return_token_ids" in added:
        fitted.pop("token_ids", None)
    return fitted


def is_blank(chunk: Any) -> bool:
    """Return True if the JSON of a chunk has no part of the answer, but e.g. the role with an empty text."""
    with suppress(AttributeError, TypeError):  # not a chunk
        choices = chunk.get("choices") or ()
        parts = [{**(choice.get("delta") or {}), "role": choice.get("finish_reason")} for choice in choices]
        return not any(value for part in parts for value in part.values())
    return False


def is_whole(answer: Any) -> bool:
    """Return True if all choices in the JSON of an answer have one of the usual finish reasons."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    return (
        bool(choices)
        and isinstance(choices, list)
        and all(isinstance(choice, Mapping) and choice.get("finish_reason") in WHOLE for choice in choices)
    )
