"""The public names: those that `typing/user.py` uses. A change there is a change for users."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import typing
from collections import defaultdict
from pathlib import Path

import pytest

USER = Path(__file__).parent / "typing" / "user.py"


def surface() -> dict[str, list[str]]:
    """Names that the user imports from each module of the package; that each is also used, pyright sees to."""
    names: dict[str, list[str]] = defaultdict(list)
    for node in ast.walk(ast.parse(USER.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("r3agent"):
            names[str(node.module)] += [alias.name for alias in node.names]
    return names


SURFACE = surface()

PACKAGES = [
    "r3agent",
    *(
        f"r3agent.{room}"
        for room in ("cards", "data", "deploy", "doctor", "evaluate", "report", "serve", "testing", "train")
    ),
]
"""Modules all of whose `__all__` is public; the others have names that are not."""

NAMES = [(module, name) for module, names in SURFACE.items() for name in names]


@pytest.mark.parametrize("module", PACKAGES)
def test_all_names_are_used_by_the_user_and_in_order(module: str) -> None:
    # Constants, classes, then functions, as `ruff` sorts `__all__`.
    names = sorted(SURFACE[module], key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert importlib.import_module(module).__all__ == names
    assert set(names) <= set(dir(importlib.import_module(module)))


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_public_name_is_documented(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    is_type_alias = typing.get_origin(value) is not None
    own_docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert is_type_alias or own_docstring


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("r3agent.registry", "r3agent.store.registry", ["PolicyCard", "Registry"]),
        ("r3agent.langchain", "r3agent.policy.langchain", ["ChatModelPolicy"]),
    ],
)
def test_deprecated_module_has_its_names_and_warns(
    old: str, new: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.deprecated_call(match=f"{old} is now {new}; {old} is removed in 0.3"):
        module = importlib.import_module(old)
    for name in names:
        assert getattr(module, name) is getattr(importlib.import_module(new), name)


def test_import_of_the_package_loads_no_dependency() -> None:
    script = (
        "import sys; before = set(sys.modules); import r3agent, r3agent.train, r3agent.serve; dir(r3agent)\n"
        "from importlib.metadata import packages_distributions as known\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before} & set(known()) - {'r3agent'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_lazy_package_gives_submodules_and_refuses_other_names() -> None:
    import r3agent

    assert not hasattr(r3agent, "a.b")
    assert not {"TYPE_CHECKING", "lazy_names"} & set(dir(r3agent))
    names: dict[str, object] = {}
    exec("from r3agent import *", names)
    assert set(SURFACE["r3agent"]) <= set(names)
    assert r3agent.errors.R3Error is r3agent.R3Error
    with pytest.raises(AttributeError, match="module 'r3agent' has no attribute 'colect'"):
        r3agent.colect  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'colect' from 'r3agent'"):
        exec("from r3agent import colect")
