"""Sampling fields of a request: which of them change the distribution, and which of them are the server's to decide.

Training compares probabilities of the model itself, at temperature 1 and over the whole vocabulary. Tokens that were
drawn from any other distribution are not a sample of that policy, whatever logprobs the server reports for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEUTRAL: Mapping[str, float] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Neutral values of fields that servers fill in if a request leaves them out; vLLM does so from the model's
generation_config.json, and its logprobs do not show it."""

LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the limit of sampled tokens; newer models of OpenAI refuse the first, others do not know the second."""

GRAMMARS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),  # vLLM
    *("regex", "ebnf", "structural_tag", "grammar", "json_schema"),  # SGLang and llama.cpp
)
"""Request fields that constrain sampling whatever their value."""

FORMS = (*GRAMMARS, "response_format", "tool_choice", "parallel_tool_calls")
"""Request fields that can force the form of an answer."""

UNCHANGED: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens", "mirostat"), (0,)),
    **dict.fromkeys(("dynatemp_range", "dry_multiplier", "xtc_probability"), (0,)),
    **dict.fromkeys(("best_of", "typical_p", "repeat_penalty"), (1,)),
    **dict.fromkeys(("logit_bias", "bad_words", "allowed_token_ids", "logits_processors"), ({}, [], ())),
    **dict.fromkeys(("thinking_token_budget", "custom_logit_processor", "repetition_detection"), ()),
    **dict.fromkeys(("use_beam_search", "watermarking"), (False,)),
}
"""Fields that change the distribution, and their values (besides `null`) that do not; of vLLM, SGLang and llama.cpp."""


def reshaping(request: Mapping[str, Any]) -> str | None:
    """Return why a request's tokens are not a sample of the policy that their logprobs describe; `None` if they are.

    Args:
        request: the body of a request, or the `sampling` of a span, whose further fields are in `extra`.
    """
    fields = {**request, **(request.get("extra") or {})}
    if _is_constrained(fields):
        return "sampled under a grammar (response_format, a forced tool or strict ones): not from what its logprobs say"
    changed = [
        f"{field} = {fields[field]!r}"[:80]
        for field, unchanged in UNCHANGED.items()
        if fields.get(field) is not None and fields[field] not in unchanged
    ]
    return f"sampled with {', '.join(changed)}: not from what its logprobs describe" if changed else None


def left_to_server(request: Mapping[str, Any]) -> list[str]:
    """List the sampling fields that a request leaves out, so that the server decides on them."""
    return [field for field in ("temperature", "top_p", *NEUTRAL) if request.get(field) is None]


def _is_constrained(fields: Mapping[str, Any]) -> bool:
    if any(fields.get(field) is not None for field in GRAMMARS):
        return True
    form, choice = fields.get("response_format"), fields.get("tool_choice")
    if form is not None and not (isinstance(form, Mapping) and form.get("type", "text") == "text"):
        return True
    if choice not in (None, "auto"):
        return choice != "none"
    # vLLM 0.32 gives calls a grammar if a tool is strict, or if there may be only one call.
    functions = [tool.get("function") or {} for tool in fields.get("tools") or () if isinstance(tool, Mapping)]
    return bool(functions) and (
        fields.get("parallel_tool_calls") is False or any(function.get("strict") is True for function in functions)
    )
