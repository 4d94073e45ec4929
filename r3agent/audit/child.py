"""Functions that judge probes with the user's verifier; `probes.py` calls them in a child process."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

from r3agent._util.aio import run_in_thread_loop
from r3agent.records.trajectory import Span, Task
from r3agent.verifiers import Verifier, find_verifier, judge, warm_up


@cache
def _verifier(name: str, params: str) -> Verifier:
    verifier = find_verifier(name, **json.loads(params))
    warm_up(verifier)
    return verifier


def load(name: str, params: str) -> None:
    """Find and warm up a verifier; `params` are JSON.

    Raises:
        ConfigError: there is no such verifier, or it does not accept `params`.
    """
    _verifier(name, params)


def judge_probe(name: str, params: str, task: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a `ProbeResult`, with the verifier's exception as its `error`."""
    calls = message.get("tool_calls") or ()
    span = Span(label="attempt", model="audit", text=message.get("content") or "", tool_calls=calls)
    start = time.perf_counter()
    try:
        (verdict,) = run_in_thread_loop(judge(_verifier(name, params), Task.model_validate(task), [span]))
        result: dict[str, Any] = (
            {"error": "the verdict is pending: what is decided later cannot be audited"}
            if verdict is None
            else {"passed": verdict.passed, "score": verdict.score}
        )
    except Exception as error:  # raised by the verifier
        result = {"error": str(error)}
    return {**result, "seconds": time.perf_counter() - start}
