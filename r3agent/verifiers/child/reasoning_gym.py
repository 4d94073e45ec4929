"""Generate and score with reasoning-gym in a worker process. Only a worker imports it.

Some of its scorers pass the answer to `eval`, directly or through sympy's `parse_expr`. An answer reaches those only if
it is one of the accepted ones, a Python literal, or arithmetic of numbers, one-letter names and known functions; any
other is wrong without evaluation. Generators whose scorers pass wrong answers are refused (`REFUSED`).
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset  # pyright: ignore[reportMissingImports]  # an extra

REFUSED = {
    "composite": "it only mixes others; name one of them",
    "coin_flip": "its scorer pays for a right beginning in full, so 0 always passes",
    "game_of_life_halting": "its scorer passes every answer that is not empty",
    "puzzle24": "its scorer does not look at which numbers were given, so 6*4*1*1 always passes",
}
"""Reasons for refusing generators, by name."""

SET_HERE = ("seed", "size")

EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
"""Generators whose scorers call `eval`."""

FUNCTIONS = "exp|log|ln|sqrt|Abs|a?(?:sin|cos|tan|sec|csc|cot)h?|pi"
SYMBOLIC = re.compile(rf"(?:\d+(?:\.\d+)?(?![\w.])|(?:{FUNCTIONS}|[A-Za-z])(?!\w)|[-+*/()\s])*", re.ASCII)
FOUR_OPERATORS = re.compile(r"(?:\d+(?!\d)|\*(?!\s*\*)|/(?!\s*/)|[-+()\s])*", re.ASCII)
PARSED = {
    "countdown": FOUR_OPERATORS,
    "intermediate_integration": SYMBOLIC,
    "polynomial_multiplication": SYMBOLIC,
    "simple_integration": SYMBOLIC,
}
"""Generators whose scorers call `parse_expr`, which evaluates Python."""

NO_NAN = {"complex_arithmetic", "number_sorting"}
"""Generators whose scorers accept nan."""

TUPLES = {"arc_agi", "rearc"}
"""Generators whose scorers compare a grid with tuples, which JSON turns into lists."""


def names() -> list[str]:
    """Return the usable generators."""
    return sorted(set(DATASETS) - set(REFUSED))


def entries(name: str, params: dict[str, Any], seed: int, size: int) -> dict[str, Any]:
    """Return `{"entries": [...]}`, without entries whose own answer does not pass, or `{"refused": why}`."""
    if name not in DATASETS:
        near = get_close_matches(name, names()) or names()
        return {"refused": f"reasoning-gym has no such generator; use one of {near}"}
    if name in REFUSED:
        return {"refused": REFUSED[name]}
    if fixed := [key for key in SET_HERE if key in params]:
        return {"refused": f"{fixed} cannot be set: the seed of the tasks and n decide"}
    try:
        dataset = create_dataset(name, **params, seed=seed, size=size)
    except (TypeError, ValueError, AssertionError) as error:
        known = sorted(field.name for field in fields(DATASETS[name][1]) if field.name not in SET_HERE)
        wrong = f"; its settings are {', '.join(known)}" if set(params) - set(known) else ""
        return {"refused": f"task.params = {params}: {error}{wrong}"}
    # A field that JSON cannot represent, such as a fraction in gsm_symbolic's variables, becomes text.
    made = [json.loads(json.dumps(dataset[i], default=str)) for i in range(size)]
    return {"entries": [entry for entry in made if entry["answer"] is None or _own_answer_passes(name, params, entry)]}


def score(name: str, params: dict[str, Any], entry: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return `{"score": ...}`, or `{"why": ...}` for an answer that is wrong without a score.

    Raises:
        ValueError: the generator is refused.
        Exception: the scorer cannot read the entry.
    """
    if name in REFUSED:
        raise ValueError(f"{name}: {REFUSED[name]}")
    if why := _unfit(name, entry, answer):
        return {"why": why}
    try:
        found = _ask(name, params, entry, answer)
    except Exception as error:
        _ask(name, params, entry, str(entry["answer"] or ""))  # raises too if the entry is at fault
        return {"why": f"cannot be read: {type(error).__name__}: {error}"}
    # A score above 1 is a sum or a power of something other than the right answer.
    return {"score": found} if 0 <= found <= 1 else {"why": f"its score {found} is not between 0 and 1"}


def _own_answer_passes(name: str, params: dict[str, Any], entry: dict[str, Any]) -> bool:
    answer = entry["answer"].strip()
    return not _unfit(name, entry, answer) and _ask(name, params, entry, answer) == 1


def _ask(name: str, params: dict[str, Any], entry: dict[str, Any], answer: str) -> float:
    entry = json.loads(json.dumps(entry))  # some scorers modify it
    if name in TUPLES:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    return float(_scorer(name, json.dumps(params)).score_answer(answer, entry))


@lru_cache(maxsize=16)
def _scorer(name: str, params: str) -> Any:
    return create_dataset(name, **json.loads(params), seed=0, size=1)


def _unfit(name: str, entry: dict[str, Any], answer: str) -> str:
    """Return the reason to keep the answer from the scorer, or an empty string."""
    if name in EVALUATED:
        accepted = {str(entry["answer"]).strip(), *entry["metadata"].get("valid_answers", ())}
        if answer not in accepted and not _is_literal(answer):
            return "neither the answer nor a Python list"
    if (allowed := PARSED.get(name)) and not allowed.fullmatch(answer):
        return "not an expression of the kind that is asked for"
    if name in NO_NAN and "nan" in answer.lower():
        return "nan is not a number"
    return ""


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
