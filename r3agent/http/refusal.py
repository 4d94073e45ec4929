"""Find the request fields that a server refuses, in a refusal of any shape and spelling.

Unsupported parameter: 'max_tokens' is not supported with this model.       OpenAI, Azure
`temperature` and `top_p` cannot both be specified for this model.          Claude behind gateways
Invalid JSON payload received. Unknown name "topK": Cannot find field.      Gemini
body.return_token_ids: Extra inputs are not permitted                       FastAPI: vLLM, TGI, Mistral
unknown field `top_k`, expected one of `messages`, `model`, ...             Rust
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

REFUSING = (400, 403, 404, 405, 415, 422, 500, 501)
"""Statuses of responses that may refuse a field; all but 400 and 422 do only if they say so."""

INDISPENSABLE = frozenset({"model", "messages", "tools"})
"""Fields that no request can go without."""

UNSUPPORTED = re.compile(
    r"(?i)unsupported|unknown|unexpected|unrecogni|deprecat|disabled|disallow|no longer|penalt"
    r"|(?:not|n't) (?:(?:be|both be|yet|been) )?(?:support|permit|allow|enabl|recogni|implement|accept|available)"
    r"|cannot (?:both )?be (?:specif|used|set)"
    r"|\bextra[ _](?:inputs?|fields?|forbidden|param)|invalid (?:param|arg|field|key)|only the default"
)
"""Wording of a refusal of a field, rather than of a value out of its range."""

VAGUE = re.compile(
    r"(?i)penalt|unknown|unexpected|unrecogni|unsupported|not (?:permitted|allowed|supported|enabled)"
    r"|\bextra[ _](?:inputs?|fields?|forbidden)|invalid (?:param|arg|field)"
    r"|^(?:\{\}|bad request|unprocessable \w+|invalid request|error)?\W*$"
)
"""Wording of a refusal of fields that the message may not name, and of one that says nothing."""

NO_PROVIDER = re.compile(r"(?i)handle the requested param")
"""Wording of OpenRouter, with 404, if no provider takes all fields of a request."""

OUT_OF_RANGE = re.compile(
    r"(?i)between|(?:less|greater|larger|smaller|more|higher|lower) than|at (?:least|most)|[<>]=?|in [\[(]|exceed"
    r"|too (?:large|big|high|small|low|long|many)|\brange\b|maximum|minimum|positive|negative"
)
"""Wording of a refusal of a value whose field is supported."""

ALTERNATIVES = re.compile(
    r"(?i)(?<!not )\b(?:expected(?: one)?|(?:allowed|permitted|supported|valid|known|available|accepted)"
    r" (?:keys|fields|names|param\w*|properties|arguments|inputs|options|values))(?: of| are| is)?:? |did you mean"
)
"""Beginning of a list of fields that the server would accept."""

PLACE = re.compile(r"""['"]loc['"]: ?[\[(]([^\])]*)[\])]""")
"""Place of a field in the text of an error of pydantic, which also quotes the request."""

QUOTED = re.compile(r"""['"`]([\w.\[\]-]+)\\?['"`]""")
"""Name in quotes."""

SPELLINGS: Mapping[str, str] = {
    "logprobs": r"(?:response[_ -]?)?log[_ -]?prob(?:abilitie)?s",
    "max_tokens": r"max[_ -]?(?:output[_ -]?|new[_ -]?)?tokens",
    "n": r"n|candidate[_ -]?count|(?:multiple|several) (?:candidates|choices|completions|generations)",
    "response_format": r"response[_ -]?(?:format|schema|mime[_ -]?type)|json[_ -]?(?:schema|mode)|structured outputs?",
    "seed": r"(?:random[_ -]?)?seed",
    "stop": r"stop(?:[_ -]?(?:sequences?|words?|strings?|tokens?))?",
    "tool_choice": r"tool[_ -]?choice|function[_ -]?call(?:ing)?[_ -]?mode",
}
"""Patterns of fields that servers call otherwise; `_` of other names is also a space, a hyphen or nothing."""


def is_vague(status: int, refusal: str) -> bool:
    """Return True if a response may refuse fields that it does not name."""
    return bool(NO_PROVIDER.search(refusal) or (status in (400, 422) and VAGUE.search(refusal)))


def refused_fields(status: int, refusal: str, fields: Iterable[str], *, param: str | None = None) -> set[str]:
    """Find those of a request's `fields` that a response refuses; empty if it refuses none, or something else.

    Args:
        status: HTTP status, or the one that an error in a successful response carries.
        refusal: the server's full message.
        param: the field to which the server attributes the error, or its place, such as `body.logprobs`.
    """
    fields = [field for field in fields if field not in INDISPENSABLE]
    if status not in REFUSING or not (status in (400, 422) or UNSUPPORTED.search(refusal)):
        return set()
    places = [param or "", *PLACE.findall(refusal)]
    if named := _named(" ".join(places), fields):
        return named
    wrong = ALTERNATIVES.split(refusal, maxsplit=1)[0]
    return _named(" ".join(QUOTED.findall(wrong)), fields) or _named(wrong, fields)


def _named(text: str, fields: Iterable[str]) -> set[str]:
    names = {field: SPELLINGS.get(field) or re.escape(field).replace("_", "[_ -]?") for field in fields}
    return {field for field, name in names.items() if re.search(rf"(?i)(?<!\\)\b(?:{name})\b", text)}
