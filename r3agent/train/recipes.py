"""Recipes: named choices of what is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Recipe: TypeAlias = Literal["paper", "sft", "custom"]
"""Name of a recipe; `custom` is any other choice of its settings."""

RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "paper": {"credit": {"reflect": "retry_success"}},
    "sft": {"credit": {}, "imitate": 1.0},
    "custom": {},
}
"""Settings of each recipe that differ from the defaults."""

DEFAULT: Recipe = "paper"

BY_RECIPE = ("credit", "distill", "imitate", "self_distill")
"""Settings that a recipe decides on, unless they are given."""


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the settings of the recipe to those that are given, which count.

    Without a recipe, it is `custom` if one of its settings is given, and else the default.
    """
    given = settings.get("recipe", "custom" if any(name in settings for name in BY_RECIPE) else DEFAULT)
    known: Mapping[str, Any] = RECIPES.get(given, {})
    return {"recipe": given, **known, **settings}
