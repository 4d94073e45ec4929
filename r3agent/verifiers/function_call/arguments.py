"""Judge the arguments of a call by the rules of the Berkeley function-calling leaderboard for Python.

- Every required parameter is present, no unaccepted one is, and each has one of its accepted values. The accepted value
  `""` makes a parameter optional.
- A value has the declared type, or the type of its first accepted value. An integer is valid for a float, but not vice
  versa, and a boolean is not a number.
- Text is compared ignoring case, spaces, `, . / - _ * ^` and the kind of quotes, also inside lists and dicts.
- A dict, or each dict of a list of dicts, is described by the accepted values of each key.

Source: `bfcl_eval.eval_checker.ast_eval.ast_checker`; `benchmarks/bfcl_agreement.py` compares with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from reprlib import Repr
from typing import Any, Literal, TypeAlias

ParameterType: TypeAlias = Literal["string", "integer", "float", "boolean", "array", "tuple", "dict", "any"]

PYTHON: dict[ParameterType, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}

_IGNORED = re.compile(r"[ ,./\-_*^]")

_repr = Repr()
_repr.maxstring = _repr.maxother = 80


def fault(
    arguments: Mapping[str, Any],
    *,
    required: Iterable[str],
    accepts: Mapping[str, Sequence[Any]],
    types: Mapping[str, Sequence[ParameterType]],
) -> str | None:
    """Return the fault in the arguments of a call, or `None` if they are right.

    Args:
        accepts: accepted values of each parameter.
        types: type of each parameter, and of the items of an array; empty if the parameter must be left out.
    """
    for name in required:
        if name not in arguments:
            return f"{name} is missing"
    for name, value in arguments.items():
        if name not in accepts or not types[name]:
            return f"{render(name)} is not to be given"
        if not _accepted(value, accepts[name], *types[name]):
            return f"{name} = {render(value)} is wrong"
    for name, accepted in accepts.items():
        if name not in arguments and "" not in accepted:
            return f"{name} is missing"
    return None


def render(value: object) -> str:
    """Render a value for people: short, and in ASCII so that any record can store it."""
    return ascii(_repr.repr(value))[1:-1]


def _accepted(value: Any, accepted: Sequence[Any], kind: ParameterType, items: ParameterType | None = None) -> bool:
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)  # JSON, and so the accepted values, have no tuples
    if kind == "float" and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return False
    declared, meant = PYTHON[kind], _type_of(accepted)
    if type(value) is declared:
        if items is not None and not any(_items_fit(value, option, PYTHON[items]) for option in accepted):
            return False
        if meant in (None, declared):
            return _equal(value, accepted, declared, None if items is None else PYTHON[items])
    elif type(value) is not meant:
        return False
    return value in accepted


def _equal(value: Any, accepted: Sequence[Any], declared: type, items: type | None) -> bool:
    if declared is dict:
        return any(_dict_fits(value, option) for option in accepted if option != "")
    if declared is list and items is dict:
        return any(_dicts_fit(value, option) for option in accepted)
    if declared is list:
        return [*map(_standard, value)] in [[*map(_standard, option)] for option in accepted]
    if declared is str:
        return _standard(value) in [_standard(option) for option in accepted if isinstance(option, str)]
    return value in accepted


def _type_of(accepted: Iterable[Any]) -> type | None:
    return next((type(value) for value in accepted if value != ""), None)


def _items_fit(values: Iterable[Any], option: Any, declared: type) -> bool:
    """Return True if all items have the declared type, or that of the option's first item if it is a list."""
    if not isinstance(option, list):
        return True
    meant = _type_of(option)
    return all(type(value) in (declared, meant) for value in values)


def _dict_fits(value: Mapping[str, Any], option: Mapping[str, Sequence[Any]]) -> bool:
    return all(
        key in option and _standard(inner) in [_standard(accepted) for accepted in option[key]]
        for key, inner in value.items()
    ) and all(key in value or "" in accepted for key, accepted in option.items())


def _dicts_fit(values: Sequence[Any], option: Sequence[Any]) -> bool:
    return len(values) == len(option) and all(
        isinstance(value, dict) and fits != "" and _dict_fits(value, fits)
        for value, fits in zip(values, option, strict=True)
    )


def _standard(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
