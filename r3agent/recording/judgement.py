"""Judgement of an application on a try: `passed`, a score, or what a verifier returns."""

from __future__ import annotations

import json

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError
from r3agent.records.json_values import json_value, plain
from r3agent.records.trajectory import Verdict
from r3agent.verifiers.interface import verdict_of


def read_judgement(passed: object, score: object, verdict: object, feedback: object) -> Verdict:
    """Read the arguments of `Episode.verdict`.

    Raises:
        ConfigError: not one of passed, score and verdict is given, or it is no judgement.
    """
    given = [value for value in (passed, score, verdict) if value is not None]
    if len(given) != 1:
        raise ConfigError(f"verdict(): {len(given)} of passed, score and verdict are given; give one of them")
    value = plain(given[0])
    try:
        if passed is not None and value not in (True, False):
            raise TypeError
        judgement = verdict_of(bool(value) if passed is not None else value)
    except TypeError:
        raise ConfigError(
            f"verdict(): {shorten(value)} is no judgement; give passed=True or False, score=0 to 1, or what a verifier "
            "returns as verdict="
        ) from None
    if feedback is None:
        return judgement
    text = feedback if isinstance(feedback, str) else json.dumps(json_value(feedback))
    return judgement.model_copy(update={"feedback": text})
