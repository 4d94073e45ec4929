"""Recipes: named choices of what is trained on."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from pydantic import ValidationError

from r3agent.errors import ConfigError
from r3agent.run.config import load_config, to_toml
from r3agent.train import TrainConfig

PAPER = {"reflect": "retry_success"}


def test_the_default_recipe_is_the_papers_with_imitated_tries() -> None:
    assert TrainConfig() == TrainConfig(recipe="paper+sft")
    assert (TrainConfig().credit, TrainConfig().distill, TrainConfig().imitate) == (PAPER, 0, 1)


def test_the_papers_recipe_trains_reflections_alone() -> None:
    config = TrainConfig(recipe="paper")
    assert (config.credit, config.distill, config.imitate) == (PAPER, 0, 0)


def test_a_recipe_sets_what_is_not_given() -> None:
    config = TrainConfig(recipe="sft", distill=0.5)
    assert (config.credit, config.imitate, config.distill) == ({}, 1.0, 0.5)


REWARDED: list[dict[str, Any]] = [
    {"credit_weights": {"reflect": 2.0}},
    {"leak": "drop"},
    {"baseline": "batch"},
    {"scale_rewards": "none"},
]
"""Settings of how credited spans are rewarded, with other values than the paper's."""


@pytest.mark.parametrize("own", REWARDED)
def test_another_reward_than_the_papers_is_a_custom_recipe(own: dict[str, Any], tmp_path: Path) -> None:
    for given in ({"recipe": "paper", **own}, {**TrainConfig(recipe="paper").model_dump(), **own}):
        config = TrainConfig.model_validate(given)
        assert (config.recipe, config.credit) == ("custom", PAPER)
        assert config.model_dump(include=set(own)) == own
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(load_config(None, {"train.recipe": "paper"} | {f"train.{k}": v for k, v in own.items()})))
    assert load_config(file, {}).train == config
    assert load_config(file, {"train.recipe": "paper"}).train == TrainConfig(recipe="paper")
    assert TrainConfig.model_validate(own).imitate == 1  # of the default recipe
    assert load_config(file, {"train.recipe": "sft"}).train == TrainConfig(recipe="sft")


@pytest.mark.parametrize("own", [{"credit": {"attempt": "success"}}, {"distill": 0.5}])
def test_a_recipe_with_another_setting_is_a_custom_one(own: dict[str, Any]) -> None:
    for recipe in ("paper+sft", "paper", "sft"):
        config = TrainConfig.model_validate({"recipe": recipe, **own})
        rest = TrainConfig.model_validate({"recipe": recipe}).model_dump(exclude={"recipe", *own})
        assert config.recipe == "custom"
        assert config.model_dump(include=set(rest)) == rest


def test_a_recipe_with_its_own_settings_keeps_its_name() -> None:
    assert TrainConfig(recipe="paper", credit={"reflect": "retry_success"}, distill=0).recipe == "paper"
    for config in (TrainConfig(), TrainConfig(recipe="paper"), TrainConfig(recipe="sft")):
        assert TrainConfig.model_validate(config.model_dump()) == config


def test_settings_without_a_recipe_are_a_custom_one() -> None:
    config = TrainConfig(distill=0.5)
    assert (config.recipe, config.credit, config.distill) == ("custom", PAPER, 0.5)
    assert TrainConfig(scale_rewards="group").recipe == "paper+sft"  # as the default's


def test_an_unknown_recipe_is_refused() -> None:
    for unknown in ("grpo", ["paper"]):
        with pytest.raises(ValidationError, match="paper"):
            TrainConfig.model_validate({"recipe": unknown})


def test_a_files_recipe_can_be_changed_by_one_word(tmp_path: Path) -> None:
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(load_config(None, {})))
    assert not {"credit", "leak", "baseline"} & tomllib.loads(file.read_text())["train"].keys()
    for line in ("# credit = {reflect = ", '# leak = "keep"\n', "# imitate = 1.0\n"):
        assert line in file.read_text()
    assert load_config(file, {"train.recipe": "sft"}).train == TrainConfig(recipe="sft")


def test_a_setting_beside_a_recipe_is_kept_in_the_file(tmp_path: Path) -> None:
    config = load_config(None, {"train.recipe": "sft", "train.distill": 0.5})
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(config))
    assert load_config(file, {}) == config


def test_the_command_lines_recipe_replaces_the_files_choices(tmp_path: Path) -> None:
    file = tmp_path / "r3.toml"
    file.write_text(to_toml(load_config(None, {"train.credit": {"attempt": "success"}, "train.distill": 0.5})))
    assert load_config(file, {}).train.recipe == "custom"
    assert load_config(file, {"train.recipe": "sft"}).train == TrainConfig(recipe="sft")
    assert load_config(file, {"train.recipe": "sft", "train.distill": 1.0}).train.distill == 1.0


@pytest.mark.parametrize(
    "train",
    [{"credit": {"attempt": "success"}, "distill": 0.5}, {"recipe": "custom", "imitate": 2.0}, {"recipe": "sft"}],
)
def test_a_custom_recipe_keeps_the_files_choices(tmp_path: Path, train: dict[str, Any]) -> None:
    file = tmp_path / "r3.toml"
    file.write_text(tomlkit.dumps({"train": train}))
    plain, custom = (load_config(file, given).train for given in ({}, {"train.recipe": "custom"}))
    assert custom == plain.model_copy(update={"recipe": "custom"})
    more = load_config(file, {"train.recipe": "custom", "train.distill": 0.25}).train
    assert more == custom.model_copy(update={"distill": 0.25})


def test_a_recipe_of_a_file_without_a_section_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r3.toml"
    file.write_text("train = 3\n")
    with pytest.raises(ConfigError, match=r"train\.recipe: train = 3 is not a section; write \[train\]"):
        load_config(file, {"train.recipe": "sft"})
