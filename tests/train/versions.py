"""Training the tiny policy in one call, and loading what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from r3agent.records.trajectory import Trajectory
from r3agent.store.registry import PolicyCard
from r3agent.train import PolicyStart, TrainConfig, train
from r3agent.train.run import Progress
from tests.train import recorded

OUTCOMES = [[1, 0], [0, 1, 1], [1, 0, 0]]


def settings(**values: Any) -> TrainConfig:
    fast = {"learning_rate": 1e-2, "lora_r": 4, "lora_alpha": 8, "epochs": 4}
    return TrainConfig.model_validate({"recipe": "paper", **fast, **values})


def run(
    trajectories: list[Trajectory],
    start: PolicyStart,
    out_dir: Path,
    *,
    version: str = "v0001",
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **values: Any,
) -> PolicyCard:
    return train(
        trajectories,
        start=start,
        version=version,
        out_dir=out_dir,
        config=settings(**values),
        resume=resume,
        force=force,
        progress=progress,
    )


def trained(start: PolicyStart, out_dir: Path) -> Any:
    """The version as someone else would load it."""
    if (out_dir / "model").exists():
        return recorded.load(out_dir / "model")
    return PeftModel.from_pretrained(recorded.load(start.model), out_dir / "adapter").eval()
