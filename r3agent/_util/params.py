"""Check settings against the signature of the function that takes them as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import orjson
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from r3agent._util.messages import did_you_mean, explain
from r3agent.errors import ConfigError

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_params(function: Callable[..., Any], params: Mapping[str, Any], *, key: str, passed: Collection[str]) -> None:
    """Check names and types of `params`; a function without a readable signature checks them itself.

    Args:
        key: setting that holds them, such as `task.params`, for the message.
        passed: parameters of the function that its caller passes.

    Raises:
        ConfigError: a parameter is unknown, missing or of another type; the message suggests the nearest name.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError):
        return
    own = {p.name: p for p in parameters if p.kind in NAMED and p.name not in passed}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for name, value in params.items():
        if name in own:
            _check_type(f"{key}.{name}", own[name].annotation, value)
        elif not takes_any:
            remedy = did_you_mean(name, own, prefix=f"{key}.") if own else f"{key} takes none"
            raise ConfigError(f"unknown key {f'{key}.{name}'!r}; {remedy}")
    missing = [f"{key}.{p.name}" for p in own.values() if p.default is p.empty and p.name not in params]
    if missing:
        raise ConfigError(f"missing: {', '.join(missing)}")


def _check_type(key: str, annotation: Any, value: Any) -> None:
    if annotation is inspect.Parameter.empty:
        return
    try:
        # As JSON, a list is a tuple and an integer a number, but a text is neither.
        TypeAdapter(annotation).validate_json(orjson.dumps(value), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, BaseModel, root=key)) from None
    except (PydanticUserError, TypeError, NameError):
        return  # a type of the user's own, or a value that is not from a file
