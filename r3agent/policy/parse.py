"""Parse a chat completion and grade how trainable it is."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, cast

from r3agent.http.body import BROKEN_OFF, finish_reason
from r3agent.http.events import ForeignAnswerError
from r3agent.records.generation import FILTERED
from r3agent.records.json_values import json_value, well_formed
from r3agent.records.media import why_untrainable
from r3agent.records.reply import read_reply
from r3agent.records.sampling import left_to_server, reshaping
from r3agent.records.trajectory import Capability, Generation

Json = Mapping[str, Any]

NOT_A_COMPLETION = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
"""Errors of parsing an answer that is not a chat completion."""

REASONING = ("reasoning_field", "reasoning")

BROKEN_STREAM = (
    "the stream ended without a finish reason: it was broken off; "
    "if this server never sends one, sample without streaming"
)

LOWEST, HIGHEST = -9999.0, 1e-3
"""Bounds of a logprob: vLLM writes the lower one for minus infinity, and rounding may give a little more than 0."""

MOST = 2**53
"""Limit of token ids and of numbers of tokens: readers of JSON disagree on larger integers."""

PLAIN = Generation(text="", model="")
"""Generation to copy for one whose fields have been checked."""

UNKNOWN_VERSION = (
    "nobody knows which version it is of: the weights were swapped while it was generated, by a deploy or an "
    "evaluation, or the server has restarted and does not name its weights until the next deploy"
)


def not_a_completion(error: Exception, content: bytes, redact: Callable[[str], str]) -> str:
    """Say why an answer that begins with `content` is not a chat completion; `redact` removes secrets."""
    beginning = redact(content.decode(errors="replace"))[:80]
    answer = f"answered {beginning!r}, which" if content else "the answer"
    return redact(f"{answer} is not a chat completion ({type(error).__name__}: {error})")


def check_choices(answer: Json) -> None:
    """Raise a `ValueError` for the body of a response without choices, a `ForeignAnswerError` if it is of no API."""
    if not isinstance(cast(Any, answer), dict) or "choices" not in answer:
        raise ForeignAnswerError("it has no choices")
    choices = answer["choices"]
    if not isinstance(choices, list) or not choices:
        raise ValueError("it has no choices" if not choices else f"its choices are {reprlib.repr(choices)}")


def generations(answer: Json, common: Json, n: int, request: Json | None = None) -> list[Generation]:
    """Parse the first `n` choices of a response body, in any of the forms of `records/reply.py`.

    Args:
        common: fields of all generations that are not in the body: `policy_version`, `sampling`, `latency_s`, and the
            default of `model`.
        request: body of the request, from which each generation is graded; default: one with nothing unusual.

    Raises:
        KeyError, TypeError, AttributeError, ValueError, OverflowError: it is not a chat completion.
    """
    check_choices(answer)
    choices = answer["choices"]
    usage: Any = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    sampled = _count(usage.get("completion_tokens"))
    shared = {
        **common,
        "model": str(answer.get("model") or common["model"]),
        "prompt_token_ids": tuple(_ids(answer.get("prompt_token_ids")) or ()) or None,
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _cached(usage),
        "completion_tokens": sampled if len(choices) == 1 else None,
    }
    n_ids = sum(len(_ids(choice.get("token_ids")) or ()) for choice in choices)
    if len(choices) > 1 and sampled is not None:
        shared["sibling_tokens"] = max(0, sampled - n_ids)  # those of the choices that have no ids
    is_lossy = n_ids and sampled not in (None, n_ids)
    lost = "the number of token ids is not usage.completion_tokens: some were dropped" if is_lossy else None
    flaw = "; ".join(filter(None, [reshaping(request or {}), lost])) or None
    left = None if request is None else ", ".join(left_to_server(request))
    caveat = left and f"the server decided on {left}; r3agent doctor tests whether it samples as its logprobs say"
    details: Any = usage.get("completion_tokens_details")
    has_hidden = isinstance(details, Mapping) and bool(_count(details.get("reasoning_tokens")))
    media = why_untrainable((request or {}).get("messages") or ())
    return [_generation(choice, shared, flaw, caveat, has_hidden, media) for choice in choices[:n]]


def _cached(usage: Mapping[str, Any]) -> int | None:
    details: Any = usage.get("prompt_tokens_details")
    return _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None


def _generation(
    choice: Json, shared: Json, flaw: str | None, caveat: str | None, has_hidden: bool, media: str | None
) -> Generation:
    ids = _ids(choice.get("token_ids"))
    reply = read_reply(_message(choice))
    logprobs, wrong = read_logprobs(choice.get("logprobs"))
    reason = finish_reason(choice)
    unfit = not_whole(reason) or media
    has_content = bool(reply.text or reply.tool_calls or reply.reasoning)
    capability, note = _grade(has_content, ids, logprobs, wrong, shared, flaw, caveat)
    if unfit is not None:
        capability, note = "eval-only", unfit
    elif capability == "trainable-retokenised" and (has_hidden or reply.has_more):
        capability, note = "eval-only", f"{note}, and its text lacks the thinking: it is not what was sampled"
    is_aligned = ids is None or logprobs is None or len(ids) == len(logprobs)
    fields: dict[str, Any] = {
        **shared,
        "text": reply.text,
        **({} if reply.reasoning is None else dict(zip(REASONING, reply.reasoning, strict=True))),
        "tool_calls": reply.tool_calls,
        "extra": reply.extra,
        "token_ids": ids,
        "logprobs": logprobs if capability != "eval-only" and is_aligned else None,
        "completion_tokens": len(ids) if ids else shared["completion_tokens"],
        "sibling_tokens": None if ids else shared.get("sibling_tokens"),
        "finish_reason": reason,
        "capability": capability,
        "capability_note": note,
    }
    if capability != "trainable-exact" or reply.tool_calls or reply.extra or not all(map(_is_whole, fields.values())):
        return Generation.model_validate(fields)
    arrays = {name: tuple(fields[name]) for name in ("token_ids", "logprobs")}
    # Validation, which takes half of the time of parsing an answer, would change nothing.
    return PLAIN.model_copy(update={**fields, **arrays, "sampling": json_value(shared.get("sampling", {}))})


def _is_whole(value: Any) -> bool:
    return not isinstance(value, str) or well_formed(value) is value


def _message(choice: Json) -> Json:
    """Return the message of a choice; Gemini sends none with some finish reasons, old servers a text."""
    found: Any = next((choice[key] for key in ("message", "delta", "text") if choice.get(key) is not None), None)
    if isinstance(found, str) or (found is None and choice.get("finish_reason")):
        return {"content": found}
    if not isinstance(found, Mapping):
        raise ValueError(f"a choice has no message: {reprlib.repr(dict(choice))}")
    return found


def not_whole(reason: str | None) -> str | None:
    """Return why a completion with this finish reason is no sample of the policy, if it is none."""
    if reason is None:
        return "the endpoint gave no finish reason: nobody knows whether the completion is whole"
    if BROKEN_OFF.fullmatch(reason):
        return f"finish_reason {reason!r}: the server broke the completion off"
    return "a content filter ended the completion" if FILTERED.match(reason) else None


def read_logprobs(logprobs: Any) -> tuple[list[float] | None, str | None]:
    """Return the logprobs of the sampled tokens, and the reason if they are there and not usable.

    Servers write minus infinity as `-Infinity`, null or -9999; training cannot use such a token.
    """
    found: Any = logprobs
    if isinstance(logprobs, Mapping):
        found = logprobs.get("content")
        found = logprobs.get("token_logprobs") if found is None else found
    if found is None or isinstance(found, bool):
        return None, None
    if not isinstance(found, list):
        return None, f"the logprobs are {reprlib.repr(found)}"
    values: list[Any] = [entry.get("logprob") if isinstance(entry, dict) else entry for entry in found]
    if {*map(type, values)} == {float} and min(values) > LOWEST and max(values) <= HIGHEST and isfinite(sum(values)):
        return values, None
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not LOWEST < value <= HIGHEST:  # false for NaN too
            return None, f"{reprlib.repr(value)} among the logprobs is no logprob of a sampled token"
    return [float(value) for value in values], None


def _ids(value: Any) -> list[int] | None:
    """Return token ids; `None` if there are none, or they are something else."""
    is_list = isinstance(value, list) and {*map(type, value)} == {int} and min(value) >= 0 and max(value) < MOST
    return value if is_list else None


def _count(value: Any) -> int | None:
    """Return a number of tokens; `None` if it is not one."""
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    return int(value) if is_whole and 0 <= value < MOST else None


def _grade(
    has_content: bool,
    ids: list[int] | None,
    logprobs: list[float] | None,
    wrong: str | None,
    shared: Json,
    flaw: str | None,
    caveat: str | None,
) -> tuple[Capability, str | None]:
    """Grade a choice, with the reason why it is not trainable-exact, or with a caveat if it is.

    Args:
        wrong: defect of the logprobs.
        flaw: defect of the whole response.
        caveat: doubt about the whole response.
    """
    if not ids and not has_content:
        return "eval-only", "the completion is empty"
    if shared.get("policy_version") is None:
        return "eval-only", UNKNOWN_VERSION
    if not ids or not shared["prompt_token_ids"]:
        return "trainable-retokenised", "; ".join(filter(None, ["the endpoint returned no token ids", flaw, wrong]))
    if wrong is not None:
        return "eval-only", wrong
    if logprobs is None:
        return "trainable-retokenised", "; ".join(filter(None, ["the endpoint returned no logprobs", flaw]))
    if len(logprobs) != len(ids):
        return "eval-only", f"{len(ids)} token ids but {len(logprobs)} logprobs"
    if flaw is not None:
        return "eval-only", flaw
    return "trainable-exact", caveat or None
