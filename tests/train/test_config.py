from __future__ import annotations

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
