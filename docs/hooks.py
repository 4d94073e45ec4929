"""Text that the pages take from elsewhere, so that it is written once.

A line of a page that reads

    <!-- section: FILE: HEADING -->    becomes that section of a file of the project
    <!-- settings -->                  every setting of r3.toml, from the config model
    <!-- errors -->                    the tree of errors
    <!-- api: MODULE [NAME ...] -->    the reference of these names, or of the module's `__all__`

The reference is read from the source: nothing of the package is imported but its settings.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from r3agent._util.lazy import public_names
from r3agent.run.config import Config

ROOT = Path(__file__).parents[1]

KINDS: dict[Any, str] = {
    bool: "`true` or `false`",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    dict: "a table",
    type(None): "nothing",
}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"^<!-- (\w+)(?:: (.+?))? -->$", lambda found: FILLED[found[1]](found[2] or ""), markdown, flags=re.M)


def section(words: str) -> str:
    """Return the text below a heading; its links to pages are made relative to `docs/`."""
    file, _, heading = words.partition(": ")
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / file).read_text(), re.DOTALL | re.M)
    if found is None:
        raise LookupError(f"{file} has no section {heading!r}")
    return found[1].strip().replace("](docs/", "](")


def settings(_: str = "") -> str:
    """One table for each section of r3.toml."""
    parts: list[str] = []
    for section, field in Config.model_fields.items():
        kind: Any = field.annotation
        parts += [f"## `[{section}]`", "", "| key | takes | default | |", "|---|---|---|---|"]
        for name, setting in kind.model_fields.items():
            cells = (f"`{name}`", takes(setting), default(setting), setting.description or "")
            parts.append("| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts)


def takes(setting: Any) -> str:
    limits = [
        f"{sign}\N{NO-BREAK SPACE}{getattr(limit, name):g}"
        for limit in setting.metadata
        for name, sign in LIMITS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([kind_of(setting.annotation), *limits])


def kind_of(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is Annotated:
        return takes(FieldInfo.from_annotation(annotation))
    if origin in (Union, UnionType):
        return " or ".join(kind_of(part) for part in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a table of " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return KINDS[origin or annotation]


def default(setting: Any) -> str:
    value = setting.default
    match value:
        case None:
            return "nothing"
        case str() if not value:
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple() | dict() if not value:
            return "empty"
        case dict():
            return "`{" + ", ".join(f"{key} = {json.dumps(said)}" for key, said in value.items()) + "}`"
        case _:
            return f"`{value}`"


def errors(_: str = "") -> str:
    return f"```text\n{ast.get_docstring(tree('r3agent.errors'))}\n```"


def api(words: str) -> str:
    """Directives for mkdocstrings, each for the module that defines the name."""
    module, *names = words.split()
    origins = dict(imported(module))
    return "\n\n".join(
        f'::: {origins.get(name, module)}.{name}\n    options:\n      heading: "{name}"\n      toc_label: "{name}"'
        for name in names or public(module)
    )


def public(module: str) -> list[str]:
    """Return the names in its `__all__`, or, if it imports them lazily, those it imports for type checkers."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return list(public_names(module))


def imported(module: str) -> Iterator[tuple[str, str]]:
    """Yield the names that a package imports, each with its module."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), module)
            yield from ((alias.name, source) for alias in node.names)


def tree(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


FILLED: dict[str, Callable[[str], str]] = {
    "section": section,
    "settings": settings,
    "errors": errors,
    "api": api,
}
