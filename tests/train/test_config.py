from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from r3agent.train import TrainConfig


def test_the_papers_values_are_the_defaults_but_for_imitation() -> None:
    config = TrainConfig()
    assert TrainConfig(recipe="paper") == config.model_copy(update={"recipe": "paper", "imitate": 0})
    assert (config.beta, config.lr_scheduler, config.warmup_ratio, config.batch_size) == (0.001, "cosine", 0.03, 256)
    assert (config.distill, config.leak, config.credit_weights) == (0, "keep", {})
    assert (config.credit, config.method) == ({"reflect": "retry_success"}, "lora")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig.model_validate({"learning_rat": 1e-5})


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        ({"credit": {}, "imitate": 1, "baseline": "batch"}, "baseline = 'batch': credit = {}.*credit a label, or"),
        ({"recipe": "sft", "scale_rewards": "none"}, "scale_rewards = 'none': credit = {}.*remove scale_rewards"),
    ],
)
def test_settings_without_an_effect_are_refused(idle: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(idle)


def test_settings_with_an_effect_are_kept() -> None:
    given = {"distill": 0.5, "baseline": "batch", "scale_rewards": "none"}
    assert TrainConfig.model_validate(given).model_dump(include={*given}) == given
