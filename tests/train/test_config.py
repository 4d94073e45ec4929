from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from r3agent.train import TrainConfig


def test_the_papers_values_are_the_defaults() -> None:
    config = TrainConfig()
    assert (config.beta, config.lr_scheduler, config.warmup_ratio, config.batch_size) == (0.001, "cosine", 0.03, 256)
    assert (config.distill, config.leak, config.credit_weights) == (0, "keep", {})
    assert (config.credit, config.method) == ({"reflect": "retry_success"}, "lora")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainConfig.model_validate({"learning_rat": 1e-5})


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        ({"self_distill_form": "contrast"}, "self_distill_form = 'contrast': self_distill = 0.*set self_distill"),
        ({"distill_retries": "all"}, "distill_retries = 'all': distill = 0.*set distill above 0, or remove"),
        ({"credit": {}, "imitate": 1, "baseline": "batch"}, "baseline = 'batch': credit = {}.*credit a label, or"),
        ({"recipe": "sft", "scale_rewards": "none"}, "scale_rewards = 'none': credit = {}.*remove scale_rewards"),
        ({"credit": {}, "distill": 1, "max_siblings": 4}, "max_siblings = 4: credit = {}.*remove max_siblings"),
    ],
)
def test_settings_without_an_effect_are_refused(idle: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(idle)


def test_settings_with_an_effect_are_kept() -> None:
    given = {"distill": 0.5, "distill_retries": "all", "self_distill": 0.5, "self_distill_form": "weighted"}
    config = TrainConfig.model_validate({**given, "baseline": "batch"})
    assert config.model_dump(include={*given, "baseline"}) == {**given, "baseline": "batch"}
