"""Verbs from functions: flags that follow from settings, `--set`, `--json`, and what is printed in the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import orjson
from cyclopts import Group, Parameter
from pydantic import BaseModel

API_KEY = "OPENAI_API_KEY"
"""Variable in which every verb that talks to an endpoint finds the key."""

DEFAULT_RUN = "runs/default"
"""Run directory where none is named."""

Overrides: TypeAlias = dict[str, Any]
"""Dotted settings with the values that the command line gives them."""

RunFlag: TypeAlias = Annotated[str, Parameter(name="--run", help="Run directory.")]


def switch(help_: str) -> Parameter:
    """Describe a flag that takes no value and is off unless it is given."""
    return Parameter(help=help_, show_default=False)


JSON_FLAG = inspect.Parameter(
    "json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, switch("Print one JSON object, for machines.")],
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
            help="Any setting of r3.toml; counts more than the file; may be repeated.",
            show_default=False,
        ),
    ],
)


@dataclass(frozen=True)
class Output:
    """Output of a verb, for machines and for people."""

    data: Mapping[str, Any]
    text: str
    ok: bool = True


def flags_of(section: str, model: type[BaseModel], fields: Mapping[str, str]) -> list[inspect.Parameter]:
    """Make flags of the fields of a section of r3.toml, with the fields' own types, defaults and docstrings.

    Args:
        fields: flag, such as `--n`, to the name of the field.
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
    """Make a verb of a function: it gets `--json`, the flags, and `--set` if it takes `overrides`.

    `overrides` is what the flags and `--set` say, by dotted setting.
    """

    def decorate(function: Callable[..., Output]) -> Callable[..., Output]:
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "overrides"]
        takes_overrides = "overrides" in signature.parameters

        def run(*arguments: Any, json: bool = False, settings: tuple[str, ...] = (), **options: Any) -> Output:
            if takes_overrides:
                options["overrides"] = _overrides(options, settings, flags)
            output = function(*arguments, **options)
            return replace(output, text=orjson.dumps(output.data).decode()) if json else output

        run.__name__ = function.__name__
        run.__annotations__ = {}
        run.__dict__["__signature__"] = signature.replace(
            parameters=[*own, *flags, *([SET_FLAG] if takes_overrides else []), JSON_FLAG]
        )
        return run

    return decorate


def _overrides(options: dict[str, Any], settings: Iterable[str], flags: Iterable[inspect.Parameter]) -> Overrides:
    """Take out of the options what overrides a setting; `--set` counts more than a flag."""
    values = {flag.name.replace("__", "."): options.pop(flag.name, None) for flag in flags}
    given = {key: value for key, value in values.items() if value is not None}
    if not settings:
        return given
    from r3agent.run.config import parse_override

    return given | dict(map(parse_override, settings))
