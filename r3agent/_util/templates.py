"""Texts with places to fill in: Jinja templates in a sandbox, checked before they are used.

A template may look at what it is given and change none of it. What it may name is said where it is compiled, so that
a wrong name is found before any work starts. Refused are attributes that reach into Python, and results that are too
long. What is filled in is text and stays text: it is never taken for a template.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r3agent.errors import ConfigError

MAX_CHARS = 1_000_000
"""Limit of a rendered text."""


@dataclass(frozen=True)
class Template:
    """A compiled template, from `compile_template`."""

    name: str
    used: frozenset[str]
    """Names of the values that it uses."""
    _compiled: jinja2.Template

    def render(self, **given: Any) -> str:
        """Fill in the values.

        Raises:
            ConfigError: it asks for what is not there or not allowed, or the text is longer than `MAX_CHARS`.
        """
        pieces, left = list[str](), MAX_CHARS
        try:
            for piece in self._compiled.generate(**given):
                pieces.append(piece)
                if (left := left - len(piece)) < 0:
                    raise ConfigError(f"{self.name}: renders more than {MAX_CHARS} characters; ask for less in it")
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise ConfigError(f"{self.name}: rendering it failed: {type(error).__name__}: {error}; edit it") from error
        return "".join(pieces)


def compile_template(text: str, *, name: str = "", known: Sequence[str], hidden: Sequence[str] = ()) -> Template:
    """Compile a template that may name only what is listed.

    Args:
        name: of the template in messages.
        known: what it may name. A name with fields, such as `task.messages`, may be followed by these fields only.
        hidden: what it may not name for a reason: whoever reads the text is not to see it.

    Raises:
        ConfigError: it is not a template, or names what it is not given.
    """
    where = f"{name}: " if name else ""
    fields: defaultdict[str, set[str]] = defaultdict(set)
    for path in known:
        head, _, field = path.partition(".")
        fields[head] |= {field} - {""}
    try:
        tree = _ENVIRONMENT.parse(text)
        compiled = _ENVIRONMENT.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{where}line {error.lineno}: {error.message}; it must be a Jinja template") from error
    used = meta.find_undeclared_variables(tree) - _ENVIRONMENT.globals.keys()
    wrong = used - fields.keys() or {path for path, head, field in _paths(tree) if field not in (fields[head] or field)}
    if wrong:
        near = get_close_matches(min(wrong), known, n=1, cutoff=0.75)  # task.info is not near task.tools
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"{where}{', '.join(sorted(wrong))} is unknown; {hint}known are {', '.join(known)}"
        if secret := sorted(wrong & set(hidden)):
            message += f"; {', '.join(secret)} may hold the answer and is hidden from the policy on purpose"
        raise ConfigError(message)
    return Template(name, frozenset(used), compiled)


def _paths(tree: nodes.Template) -> list[tuple[str, str, str]]:
    """Every `NAME.FIELD` and `NAME["FIELD"]`: as written, the name and the field."""
    found: list[tuple[str, str, str]] = []
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        owner, field = node.node, node.attr if isinstance(node, nodes.Getattr) else node.arg
        if isinstance(field, nodes.Const):
            field = field.value
        if isinstance(owner, nodes.Name) and isinstance(field, str):
            found.append((f"{owner.name}.{field}", owner.name, field))
    return found


def _as_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own `tojson` escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["tojson"] = _as_json
_ENVIRONMENT.globals.pop("lipsum")  # text by chance: the same template is to give the same text
