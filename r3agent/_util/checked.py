"""Check the arguments of public functions against their annotations, at the call.

    @checked
    def serve(model: str, *, port: Annotated[int, Field(ge=0, le=65535)] = 8000) -> None: ...

An argument is never converted: a text is no number, `True` is no integer, a mapping is no record. Calls without a
required argument are left to Python, which names it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, StringConstraints, ValidationError, create_model

from r3agent._util.messages import did_you_mean, explain, shorten
from r3agent.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])

AtLeastOne: TypeAlias = Annotated[int, Field(ge=1)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Word: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""Text that is not blank."""

CONFIG = ConfigDict(
    strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, extra="ignore", protected_namespaces=()
)

CHECKED_LATER = ("client", "tasks", "trajectories", "policy", "verifier")
"""Arguments that a check of their own describes."""

SECRETS = {"api_key": "a string", "headers": "a mapping of names to strings"}
"""Arguments whose values are in no message, and what they must be."""


def checked(function: F) -> F:
    """Check types, limits and names of the arguments of each call; one that does not fit raises an `ArgumentError`."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
    unnamed = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    positional = [*unnamed, *(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @cache
    def model() -> type[BaseModel]:
        hints = typing.get_type_hints(function, include_extras=True)
        kinds: dict[str, Any] = {
            p.name: (_unconverted(hints[p.name]), None)
            for p in parameters
            if p.name in hints and p.name not in CHECKED_LATER and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        return create_model(function.__name__, __config__=CONFIG, **kinds)

    def check(args: tuple[Any, ...], named: dict[str, Any]) -> None:
        for name in named.keys() & {*unnamed}:
            raise ArgumentError(f"argument {name!r}: pass it by its position, without a name")
        given = {**dict(zip(positional, args, strict=False)), **named}
        for name in () if takes_any else sorted(given.keys() - {*names, *positional}):
            raise ArgumentError(f"unknown argument {name!r}; {did_you_mean(name, names)}")
        try:
            model().model_validate(given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise ArgumentError(_message(name, given[name], model(), error)) from None

    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            check(args, kwargs)
            return await function(*args, **kwargs)

        return cast(F, call_async)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return function(*args, **kwargs)

    return cast(F, call)


def _unconverted(hint: Any) -> Any:
    """Return an annotation under which pydantic takes records as instances only, and not as mappings."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return InstanceOf[hint]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_unconverted, get_args(hint)))]  # noqa: UP007
    return hint


def _message(name: str, value: object, model: type[BaseModel], error: ValidationError) -> str:
    """Describe the first wrong argument."""
    if name in SECRETS:
        return f"{name}: a {type(value).__name__}; it must be {SECRETS[name]}"
    errors = [each for each in error.errors(include_url=False) if each["loc"][0] == name]
    hint = model.model_fields[name].annotation
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(hint)]
    kinds = [getattr(kind, "__name__", str(kind)) for kind in plain if kind is not type(None)]
    if get_origin(hint) in (Union, UnionType) and len(kinds) > 1 and len(errors) > 1:
        return f"{name} = {shorten(value)}: must be {' or '.join(kinds)}"
    kind = errors[0].get("ctx", {}).get("class")
    if isinstance(value, Mapping) and kind not in (None, "Sequence"):
        return f"{name} = {shorten(value)}: must be a {kind}; write {kind}(**{shorten(value)})"
    return explain(error, model)
