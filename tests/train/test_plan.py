"""Plan of a training: what the training then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3agent.run.plan import plan_run_training
from r3agent.run.stages import Run
from r3agent.store.registry import create_version, write_card
from r3agent.train.config import PolicyStart
from r3agent.train.weights import load_model
from tests.train.test_command_line import run_dir

__all__ = ["run_dir"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_plan_says_what_the_training_does(run_dir: Path, start: PolicyStart, method: str) -> None:
    run = Run(run_dir, {"train.method": method, "train.epochs": 2, "train.batch_size": 4})
    plan = plan_run_training(run)
    card = run.train()
    rows = card.metrics["rows"]
    assert (plan.rows, plan.tries, plan.steps) == (rows["rows"], rows["tries"], card.metrics["steps"])
    assert plan.tokens == 2 * (rows["prompt_tokens"] + rows["completion_tokens"])
    weights = [*load_model(start, run.config.train).parameters()]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    assert (plan.parameters, plan.trained_parameters) == (sum(weight.numel() for weight in weights), trained)
    assert plan.memory_gib == pytest.approx((4 * plan.parameters + 12 * trained) / 2**30, abs=1e-6)
    assert (plan.labels, plan.remedies) == (rows["labels"], rows["remedies"])
    assert plan.measured_on is None
    again = plan_run_training(run)  # whether or not the version is deployed
    assert again.measured_on == card.version
    assert again.seconds == pytest.approx(card.metrics["seconds"] * again.tokens / plan.tokens, rel=0.01, abs=0.1)


def test_plan_takes_the_speed_of_the_same_recipe(run_dir: Path) -> None:
    run = Run(run_dir)
    base, speeds = run.registry.card("v0000"), {"paper": 1.0, "sft": 2.0, "paper+sft": 3.0}
    for number, (recipe, seconds) in enumerate(speeds.items(), start=1):
        metrics = {"rows": {"prompt_tokens": 1}, "seconds": seconds}
        settings = {"epochs": 1, "recipe": recipe}
        card = base.model_copy(update={"version": f"v{number:04}", "kind": "lora", "parent": "v0000"})
        with create_version(run.registry.version_dir(card.version)) as directory:
            write_card(directory, card.model_copy(update={"metrics": metrics, "settings": settings}))
    for recipe, seconds in {**speeds, "custom": 3.0}.items():
        own = {"train.credit": {"reflect": "retry_success"}} if recipe == "custom" else {}
        plan = plan_run_training(Run(run_dir, {"train.recipe": recipe, "train.epochs": 1, **own}))
        assert plan.seconds == pytest.approx(plan.tokens * seconds)
