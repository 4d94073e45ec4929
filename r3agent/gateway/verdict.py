"""Body of a verdict: `POST /episodes/ID/verdict`."""

from __future__ import annotations

from typing import Any

from r3agent.gateway.episodes import Refusal
from r3agent.http.events import parse_json
from r3agent.records.json_values import json_bytes

FIELDS = ("passed", "score", "feedback", "label", "end")


def read_verdict(content: bytes) -> dict[str, Any]:
    """Check the body of a verdict.

    Raises:
        Refusal: it has no verdict, or a field of another kind.
    """
    form = 'send e.g. {"passed": true}, or {"score": 0.5, "feedback": "why", "label": "retry-2", "end": true}'
    try:
        body = parse_json(content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or (body.get("passed") is None and body.get("score") is None):
        raise Refusal(400, f"a verdict is a JSON object with passed or score; {form}")
    for name in body.keys() - {*FIELDS}:
        raise Refusal(400, f"verdict: unknown field {name!r}; {form}")
    passed: Any = body.get("passed")
    score: Any = body.get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and 0 <= score <= 1):
        raise Refusal(400, f"verdict: score = {str(score)[:40]}: must be a number from 0 to 1, which passes")
    passed = bool(is_number and score == 1) if passed is None else passed
    end = passed if body.get("end") is None else body["end"]
    for name, value, kind in (("passed", passed, bool), ("end", end, bool)):
        if not isinstance(value, kind):
            raise Refusal(400, f"verdict: {name} = {str(value)[:40]}: must be true or false")
    feedback, name = body.get("feedback"), body.get("label")
    if name is not None and not isinstance(name, str):
        raise Refusal(400, f"verdict: label = {str(name)[:40]}: must be the name of a try, e.g. retry-2")
    return {
        "passed": passed,
        "score": float(passed if score is None else score),
        "feedback": feedback if feedback is None or isinstance(feedback, str) else json_bytes(feedback).decode(),
        "label": name,
        "end": end,
    }
