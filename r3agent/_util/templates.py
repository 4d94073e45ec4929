"""Jinja templates in a sandbox, checked before they are used.

A template can read its values but not change them. The names that it may use are given when it is compiled, so a wrong
name is found before any work starts. Attributes that reach into Python, and results that are too long, are refused.
Values are inserted as text and never interpreted as templates.
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
"""Maximum length of a rendered text."""


@dataclass(frozen=True)
class Template:
    """Compiled template, made by `compile_template`."""

    name: str
    used: frozenset[str]
    """Names that the template uses."""
    _compiled: jinja2.Template

    def render(self, **given: Any) -> str:
        """Render the template with values.

        Raises:
            ConfigError: it uses a value that is missing or not allowed, or the text is longer than `MAX_CHARS`.
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
    """Compile a template that may use only the listed names.

    Args:
        name: name of the template in messages.
        known: allowed names. If a name is listed with fields, such as `task.messages`, only these fields are allowed.
        hidden: names that are refused because the reader of the text must not see them.

    Raises:
        ConfigError: the text is not a template, or it uses a name that is not allowed.
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
    """Find every `NAME.FIELD` and `NAME["FIELD"]`; return it as written, its name and its field."""
    found: list[tuple[str, str, str]] = []
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        owner, field = node.node, node.attr if isinstance(node, nodes.Getattr) else node.arg
        if isinstance(field, nodes.Const):
            field = field.value
        if isinstance(owner, nodes.Name) and isinstance(field, str):
            found.append((f"{owner.name}.{field}", owner.name, field))
    return found


def _as_json(value: Any, indent: int | None = None) -> str:
    """Render JSON without the HTML escapes of Jinja's own `tojson`."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["tojson"] = _as_json
_ENVIRONMENT.globals.pop("lipsum")  # random text: the same template must render the same text
