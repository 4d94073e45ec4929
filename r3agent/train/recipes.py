"""Recipes: named choices of what is trained on, and of how it is rewarded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, cast

Recipe: TypeAlias = Literal["paper+sft", "paper", "sft", "custom"]
"""Name of a recipe; `custom` is any other choice of its settings."""

NONE: Mapping[str, Any] = {
    "credit": {},
    "credit_weights": {},
    "distill": 0.0,
    "imitate": 0.0,
    "leak": "keep",
    "baseline": "siblings",
    "scale_rewards": "group",
}

REFLECTIONS: Mapping[str, Any] = {"credit": {"reflect": "retry_success"}}
IMITATION: Mapping[str, Any] = {"imitate": 1.0}

RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "paper+sft": {**NONE, **REFLECTIONS, **IMITATION},
    "paper": {**NONE, **REFLECTIONS},
    "sft": {**NONE, **IMITATION},
    "custom": {},
}
"""Settings of each recipe; those that `custom` leaves out have the defaults of `TrainConfig`'s fields."""

DEFAULT: Recipe = "paper+sft"

BY_RECIPE = tuple(NONE)
"""Settings that a recipe decides on, unless they are given."""


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the settings of the recipe to those that are given, which count.

    The default recipe applies if none is given. A recipe with another value than its own is `custom`, so that a card
    names no recipe that was not followed.
    """
    given = settings.get("recipe", DEFAULT)
    known: Mapping[str, Any] = RECIPES.get(cast(Recipe, given), {}) if isinstance(given, str) else {}
    whole = {**known, **settings}
    followed = all(whole[name] == value for name, value in known.items())
    return {**whole, "recipe": given if followed else "custom"}


def with_other_recipe(settings: Mapping[str, Any], recipe: Any) -> dict[str, Any]:
    """Replace the recipe of settings, and all that it decides on; `custom` keeps these as they are."""
    kept = with_recipe(settings) if recipe == "custom" else {k: v for k, v in settings.items() if k not in BY_RECIPE}
    return {**kept, "recipe": recipe}
