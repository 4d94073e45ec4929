"""Chat completion requests without the fields that a model at a server refuses; every request of r3agent goes this way.

A refused field is left out, and remembered once a request without it has succeeded. `max_tokens` is sent as
`max_completion_tokens` where that is its name, and the only value that is accepted where the refusal names it. Where
only one of `temperature` and `top_p` may be sent, it is the one that has an effect, or else `temperature`. A value out
of range is not left out, but is an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from r3agent.errors import ConversationError, RequestError
from r3agent.http.refusal import OUT_OF_RANGE, UNSUPPORTED, is_vague, refused_fields
from r3agent.records.sampling import LIMITS, NEUTRAL, UNCHANGED

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAIR = frozenset({"temperature", "top_p"})
"""Fields of which some models take only one."""

NEEDED_BY: Mapping[str, str] = {"top_logprobs": "logprobs", "stream_options": "stream"}
"""Fields to the field without which they are refused."""

ONLY_DEFAULT = re.compile(r"(?i)only the default \(?(\d+(?:\.\d+)?)\)?")
"""Refusal of any value but one."""

GUESSES = ({*NEUTRAL}, {"return_token_ids"}, {"logprobs", "top_logprobs"}, {"response_format"})
"""Fields to leave out, in turn, if a first refusal names none."""


@dataclass
class Terms:
    """Fields that one model at one server refuses.

    Args:
        where: the server and the model, for warnings.
    """

    where: str
    refused: frozenset[str] = frozenset()
    defaults: Mapping[str, float] = field(default_factory=dict[str, float])
    """Only accepted values, of fields whose refusal names one."""
    excludes_pair: bool = False
    """True if temperature and top_p are refused together."""
    has_answered: bool = field(default=False, compare=False)

    def fit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body without the refused fields, with its limit of tokens under a name that is accepted."""
        fitted = {name: value for name, value in body.items() if name not in {*self.refused, *LIMITS}}
        fitted |= {name: value for name, value in self.defaults.items() if name in fitted}
        limits = sorted(LIMITS, key=lambda name: body.get(name) is None)  # the body's own name first
        if limits[0] in body and (name := next((name for name in limits if name not in self.refused), None)):
            fitted[name] = body[limits[0]]
        if self.excludes_pair and fitted.keys() >= PAIR:
            del fitted["top_p" if is_neutral(body, "top_p") or not is_neutral(body, "temperature") else "temperature"]
        return {name: value for name, value in fitted.items() if NEEDED_BY.get(name, name) in fitted}

    def lost(self, body: Mapping[str, Any]) -> list[str]:
        """Return the fields of a body that are not sent under any name."""
        sent = self.fit(body)
        return [name for name in body if name not in sent and not (name in LIMITS and any(n in sent for n in LIMITS))]

    def after(
        self, error: RequestError, sent: Mapping[str, Any], asked: Collection[str], keep: Collection[str]
    ) -> Terms | None:
        """Return the terms as a refusal of `sent` changes them; `None` if it refuses none that may be left out."""
        text = error.refusal
        named = refused_fields(error.status, text, sent, param=error.param)
        if not named and not self.has_answered and is_vague(error.status, text):
            named = next((guess & sent.keys() for guess in GUESSES if guess & sent.keys() - {*keep}), named)
        named -= {*keep}
        if OUT_OF_RANGE.search(text) and not UNSUPPORTED.search(text):
            named -= {name for name in asked if name in sent and not is_neutral(sent, name)}
        if named > {"stream"}:
            named.remove("stream")
        if (only := ONLY_DEFAULT.search(text)) and len(named) == 1 and not named & self.defaults.keys():
            return replace(self, defaults={**self.defaults, **dict.fromkeys(named, float(only[1]))})
        pair = PAIR if named >= PAIR else frozenset[str]()
        if not named:
            return None
        return replace(self, refused=self.refused | named - pair, excludes_pair=self.excludes_pair or bool(pair))


def is_neutral(body: Mapping[str, Any], name: str) -> bool:
    """Return True if a field has a value that changes nothing."""
    return body.get(name) in UNCHANGED.get(name, ())


async def negotiate(
    terms: Terms,
    body: Mapping[str, Any],
    send: Callable[[dict[str, Any]], Awaitable[T]],
    *,
    asked: Collection[str] = (),
    keep: Collection[str] = (),
) -> T:
    """Send a body, again without the fields that the server refuses if it does, and return the result of `send`.

    Args:
        asked: fields that the user set; one that is left out is a warning, once.
        keep: fields that must not be left out.

    Raises:
        RequestError: the server refuses the request for another reason.
    """
    trial = terms
    while True:
        sent = trial.fit(body)
        try:
            result = await send(sent)
        except ConversationError:
            raise
        except RequestError as error:
            changed = trial.after(error, sent, asked, keep)
            if changed is None:
                raise
            trial = changed
            continue
        if trial is not terms:
            _remember(terms, trial, body, asked)
        terms.has_answered = True
        return result


def _remember(terms: Terms, trial: Terms, body: Mapping[str, Any], asked: Collection[str]) -> None:
    replaced = {name for name, value in trial.defaults.items() if name in body and body[name] != value}
    lost = {*trial.lost(body)} - {*terms.lost(body)} | replaced - terms.defaults.keys()
    if news := sorted(name for name in lost & {*asked} if not is_neutral(body, name)):
        values = ", ".join(f"{name} = {body[name]!r}"[:80] for name in news)
        logger.warning("%s refuses %s: from here on the server's default is in force", terms.where, values)
    terms.refused |= trial.refused
    terms.defaults = {**terms.defaults, **trial.defaults}
    terms.excludes_pair |= trial.excludes_pair
