"""Make verbs from functions: flags from settings, `--set`, `--json`, and the output."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from cyclopts import Group, Parameter
from pydantic import BaseModel

API_KEY = "OPENAI_API_KEY"
"""Environment variable with the API key, for every verb that talks to an endpoint."""

DEFAULT_RUN = "runs/default"
"""Default run directory."""

Overrides: TypeAlias = dict[str, Any]
"""Settings from the command line: dotted key to value."""

RunFlag: TypeAlias = Annotated[str, Parameter(name="--run", help="Run directory.")]


def next_step(verb: str, *words: object) -> str:
    """Write a command that can be pasted into a shell, e.g. with quotes around a path that has spaces."""
    return shlex.join(["r3agent", verb, *map(str, words)])


def switch(help_: str) -> Parameter:
    """Describe a flag that takes no value and is off by default."""
    return Parameter(help=help_, show_default=False)


HEADER = Parameter(
    name="--header",
    metavar="NAME: VALUE",
    help="Further header of every request, e.g. 'api-key: $AZURE_KEY', which is read from the environment; may be "
    "repeated.",
    show_default=False,
)

JSON_FLAG = inspect.Parameter(
    "json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, switch("Print one JSON object.")],
)
SET_FLAG = inspect.Parameter(
    "settings",
    inspect.Parameter.KEYWORD_ONLY,
    default=(),
    annotation=Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            metavar="SECTION.KEY=VALUE",
            help="Override any setting of r3.toml; may be repeated.",
            show_default=False,
        ),
    ],
)


@dataclass(frozen=True)
class Output:
    """Output of a verb, as data and as text."""

    data: Mapping[str, Any]
    text: str
    ok: bool = True
    refused: bool = False
    """True if the gate says no."""


def flags_of(
    section: str, model: type[BaseModel], fields: Mapping[str | tuple[str, ...], str]
) -> list[inspect.Parameter]:
    """Make flags from fields of a section of r3.toml, with their types, defaults and docstrings.

    Args:
        fields: flag, such as `--n`, or the names of one, to the name of its field.
    """
    group = Group(f"Section {section} of r3.toml")
    return [
        inspect.Parameter(
            f"{section}__{name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                field.annotation | None,
                Parameter(
                    name=flag,
                    help=" ".join((field.description or "").split()),
                    group=group,
                    show_default=str(field.default) if field.default not in (None, "") else False,
                ),
            ],
        )
        for flag, name in fields.items()
        for field in [model.model_fields[name]]
    ]


def verb(*flags: inspect.Parameter) -> Callable[[Callable[..., Output]], Callable[..., Output]]:
    """Make a verb from a function: add `--json`, the flags, and `--set` if the function takes `overrides`.

    `overrides` has the values of the flags and of `--set`, by dotted key.
    """

    def decorate(function: Callable[..., Output]) -> Callable[..., Output]:
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "overrides"]
        takes_overrides = "overrides" in signature.parameters

        def run(*arguments: Any, json: bool = False, settings: tuple[str, ...] = (), **options: Any) -> Output:
            if takes_overrides:
                options["overrides"] = _overrides(options, settings, flags)
            output = function(*arguments, **options)
            if not json:
                return output
            from r3agent.records.json_values import json_bytes

            return replace(output, text=json_bytes(output.data).decode())

        run.__name__ = function.__name__
        run.__annotations__ = {}
        run.__dict__["__signature__"] = signature.replace(
            parameters=[*own, *flags, *([SET_FLAG] if takes_overrides else []), JSON_FLAG]
        )
        return run

    return decorate


def _overrides(options: dict[str, Any], settings: Iterable[str], flags: Iterable[inspect.Parameter]) -> Overrides:
    """Remove the flags of settings from the options and return their values; `--set` wins over a flag."""
    values = {flag.name.replace("__", "."): options.pop(flag.name, None) for flag in flags}
    given = {key: value for key, value in values.items() if value is not None}
    if not settings:
        return given
    from r3agent.run.config import parse_override

    return given | dict(map(parse_override, settings))
