"""Parts of a task as settings name them: a column of a data set, a path into one, or a template over columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from typing import Any, Literal

from r3agent._util.messages import did_you_mean, nearest, shorten
from r3agent._util.templates import compile_template
from r3agent.errors import ConfigError
from r3agent.tasks.json_values import exact_json
from r3agent.tasks.text_files import INDEX, Row

Part = Callable[[Row], Any]
"""Function from a row to one part of its task."""

DEFAULT_ANSWERS = ("answer", "reward_model.ground_truth", "completion")
"""Places of the answer if none is named: r3agent's and most others', verl's, and TRL's."""

INDEXES = re.compile(rf"{INDEX[:-1]}\d+|__index_level_\d+__")
"""Names of the row numbers that pandas stores."""

_PATH = re.compile(r"([^.\[\]{}]+)((?:\.[^.\[\]{}]+|\[-?\d+\])+)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d+)\]")

HINTS: dict[tuple[str, ...], str] = {
    ("query", "tools", "answers"): "it is in APIGen's format: name it as xlam:FILE",
    ("nums", "target"): "it holds Countdown problems: name it as countdown:FILE",
    ("instruction", "output"): (
        "--set 'task.params.prompt={{ instruction }} {{ input }}' --set task.params.answer=output reads Alpaca's format"
    ),
    ("conversations",): (
        "--set task.params.prompt=conversations --set task.params.answer=conversations[-1].value reads ShareGPT's form"
    ),
    ("messages",): "--set task.params.prompt=messages reads a column of messages",
    ("question",): "--set task.params.prompt=question takes that column",
    ("problem",): "--set task.params.prompt=problem takes that column",
    ("instruction",): "--set task.params.prompt=instruction takes that column",
    ("query",): "--set task.params.prompt=query takes that column",
}
"""Settings that help with files of these columns."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Settings `task.params` of a data set.

    Templates are Jinja and use column names, or `row["any column"]`. Paths lead into a column: `extra_info.index`,
    `messages[-1].content`.
    """

    prompt: str = "prompt"
    """User message: a template, or a column or path of text or of chat messages. Messages that end with the gold reply
    are shown without it."""
    system: str = ""
    """System message: a column or path, or a template, which may be plain text."""
    answer: str = ""
    """Column, path or template for `info["answer"]`; default the first of `DEFAULT_ANSWERS`. In a text that ends as
    GSM8K's do, with a line `#### 72`, the answer is 72; `{{ answer }}` takes the whole text."""
    gold: str = ""
    """Reply that passes: a template, or a column or path of text or of an assistant message; default the answer, or the
    first of a list of accepted answers."""
    id: str = ""
    """Column or path of stable task ids, or a template; default a hash of the messages."""
    tools: str = ""
    """Column or path of tool definitions in OpenAI's format, or of their JSON."""
    info: Sequence[str] | None = None
    """Columns for the verifier; default all that are not named above and that JSON can hold, without pandas' index."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], further: Sequence[str] = ()) -> Columns:
        """Check settings by name and type.

        Args:
            further: other settings of the source, to suggest.

        Raises:
            ConfigError: a setting is unknown, or of another type.
        """
        known = [field.name for field in fields(cls)]
        for key, value in settings.items():
            if key not in known:
                raise ConfigError(f"task.params.{key} is unknown; {did_you_mean(key, [*known, *further])}")
            texts = isinstance(value, list | tuple) and all(isinstance(c, str) for c in value)
            if not (texts if key == "info" else isinstance(value, str)):
                raise ConfigError(
                    f"task.params.{key} = {value!r}: must be {'a list of columns' if key == 'info' else 'text'}"
                )
        return cls(**settings)


@dataclass(frozen=True)
class Table:
    """Columns of a source, which parts are taken from."""

    columns: Sequence[str]
    where: str

    def part(self, key: str, text: str, *, template: Literal["no", "yes", "literal"] = "yes") -> Part:
        """Return the function that takes the part `key` from a row.

        Args:
            text: column, path or template.
            template: whether a template is allowed, and whether plain text is one.

        Raises:
            ConfigError: there is no such column, or the template is wrong.
        """
        if text in self.columns:
            return lambda row: _cell(row, text)
        path = _PATH.fullmatch(text)
        if path and path[1] in self.columns:
            return lambda row: _follow(_cell(row, path[1]), path[2], f"{row.where}: task.params.{key} = {text!r}")
        if template == "literal" or (template == "yes" and is_template(text)):
            return self._template(key, text)
        raise ConfigError(f"task.params.{key}: {self.where} has no column {text!r}; {self._advice(text)}")

    def default_answer(self) -> str:
        """Return the place of the answer if none is named; empty if there is none.

        Raises:
            ConfigError: it is a data set of preferences, or of replies with labels, where a reply may be wrong.
        """
        if {"prompt", "completion", "label"} <= {*self.columns} and not {"answer", "reward_model"} & {*self.columns}:
            raise ConfigError(
                f"{self.where} holds replies with labels (completion, label), and a reply may be a wrong one; keep the "
                "rows of right ones and name it: --set task.params.answer=completion"
            )
        if place := next((place for place in DEFAULT_ANSWERS if place.partition(".")[0] in self.columns), ""):
            return place
        if {"chosen", "rejected"} <= {*self.columns}:
            raise ConfigError(
                f"{self.where} holds preferences (chosen, rejected), which no verifier decides; if one reply is right, "
                "name it: --set task.params.answer=chosen"
            )
        return ""

    def default_info(self, taken: set[str]) -> list[str]:
        """Return the columns for the verifier that are not taken for other parts."""
        return [name for name in self.columns if name not in taken and not INDEXES.fullmatch(name)]

    def _advice(self, name: str) -> str:
        hint = next((hint for named, hint in HINTS.items() if {*named} <= {*self.columns}), "")
        near = nearest(name, self.columns)
        return f"{near}known are {', '.join(self.columns)}{f'; {hint}' if hint and name == 'prompt' else ''}"

    def _template(self, key: str, text: str) -> Part:
        known = [name for name in self.columns if name.isidentifier()]
        template = compile_template(text, name=f"task.params.{key}", known=[*known, "row"])

        def render(row: Row) -> str:
            given = cells(row, sorted(template.used - {"row"}), strict=True)
            whole = cells(row, self.columns, strict=False) if "row" in template.used else {}
            try:
                return template.render(**{**given, "row": whole})
            except ConfigError as error:
                raise ConfigError(f"{row.where}: {error}") from error

        return render


def is_template(text: str) -> bool:
    """Return True if a setting is a template and no column or path."""
    return "{{" in text or "{%" in text


def cells(row: Row, names: Sequence[str], *, strict: bool) -> dict[str, Any]:
    """Return columns of a row.

    Args:
        strict: raise for a value that JSON cannot hold, and return `None` for a column that the row lacks; otherwise
            leave both out.

    Raises:
        ConfigError: JSON cannot hold a value.
    """
    held: dict[str, Any] = {}
    for name in names:
        if strict or name in row.values:
            with nullcontext() if strict else suppress(ConfigError):
                held[name] = _cell(row, name)
    return held


def _cell(row: Row, name: str) -> Any:
    return exact_json(row.values.get(name), f"{row.where}, column {name!r}")


def _follow(value: Any, steps: str, where: str) -> Any:
    """Follow `.key` and `[0]` into a value, through text that holds JSON.

    Raises:
        ConfigError: there is no such key or item.
    """
    for key, number in _STEP.findall(steps):
        if isinstance(value, str):
            with suppress(ValueError):
                value = json.loads(value)
        try:
            value = value[key] if key else value[int(number)]
        except (LookupError, TypeError):
            known = did_you_mean(key, value) if isinstance(value, dict) and key else f"it is {shorten(value)}"
            raise ConfigError(f"{where}: there is no {key or number!r}; {known}") from None
    return value
