"""Verifiers by name: a shipped one, the user's `module:callable`, or an entry point of the group `r3agent.verifiers`.

The settings of a verifier are its keyword arguments, or those of its constructor if it is a class.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

from r3agent._util.checked import checked
from r3agent._util.imports import entry_points, load_attribute
from r3agent._util.messages import nearest
from r3agent._util.params import check_params
from r3agent.errors import ConfigError, R3Error
from r3agent.records.prompts import Kind
from r3agent.verifiers.interface import Verifier, takes_environment

VERIFIERS: dict[str, str] = {
    "code": "r3agent.verifiers.code:Code",
    "countdown": "r3agent.verifiers.countdown:countdown",
    "countdown_steps": "r3agent.verifiers.countdown_steps:countdown_steps",
    "exact": "r3agent.verifiers.text:exact",
    "function_call": "r3agent.verifiers.function_call:function_call",
    "json_schema": "r3agent.verifiers.json_schema:JsonSchema",
    "later": "r3agent.verifiers.human:later",
    "llm_judge": "r3agent.verifiers.llm_judge:LLMJudge",
    "math": "r3agent.verifiers.math_answer:Math",
    "normalised": "r3agent.verifiers.text:normalised",
    "person": "r3agent.verifiers.human:person",
    "reasoning_gym": "r3agent.verifiers.reasoning_gym:ReasoningGym",
    "regex": "r3agent.verifiers.text:Regex",
    "sql": "r3agent.verifiers.sql:Sql",
}
"""Shipped verifiers by name, imported on first use. To add one, add a file to this folder and a line here."""

KINDS: dict[str, Kind] = {"code": "code", "function_call": "function_call", "sql": "code"}
"""Kind of a verifier's tasks, which selects the default prompts; `general` for all others."""

GROUP = "r3agent.verifiers"
"""Entry point group for packages that provide verifiers."""


@checked
def find_verifier(name: str, **params: Any) -> Verifier:
    """Return the verifier of a name, with its settings applied.

    Raises:
        ConfigError: there is no verifier of that name, or it does not accept `params`.
    """
    known = {**entry_points(GROUP), **VERIFIERS}
    if name not in known and ":" not in name:
        raise ConfigError(
            f"verifier {name!r} is unknown; {nearest(name, known)}use one of {sorted(known)} or your own as "
            "module:callable"
        )
    found = load_attribute(known.get(name, name))
    if not callable(found):
        raise ConfigError(
            f"verifier {name!r} is a {type(found).__name__}; it must be a callable (task, answer) -> bool"
        )
    is_class = isinstance(found, type)
    try:
        n_passed = 3 if takes_environment(partial(found, **params)) else 2
        passed = () if is_class else list(inspect.signature(found).parameters)[:n_passed]
        check_params(found, params, key="task.verifier_params", passed=passed)
        if is_class:
            return cast(Verifier, found(**params))
    except R3Error:
        raise
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(
            f"verifier {name!r} with {params}: {type(error).__name__}: {error}; its settings are task.verifier_params"
        ) from error
    return cast(Verifier, partial(found, **params) if params else found)
