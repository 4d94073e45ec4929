"""Plan of a training: tokens, steps, memory and time, from the rows, the model's shape and earlier trainings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from r3agent.records.trajectory import Record, Trajectory
from r3agent.store.registry import Registry
from r3agent.train.base import freeze_towers, loading, read_config
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.lineage import lineage_of
from r3agent.train.rows import file_rows
from r3agent.train.tokenizer import Retokeniser
from r3agent.train.tries import tries_of
from r3agent.train.weights import add_adapter, load_tokenizer, loaded_dtype

STATE_BYTES = 12
"""Bytes of the gradient and the two moments of Adam of a trained weight, in float32."""


class TrainPlan(Record):
    """Estimate of a training in one process."""

    rows: int
    tries: int
    """Reflections and tries that the rows are of."""
    tokens: int
    """Tokens of the rows in all epochs, prompts included; a prompt that siblings share is computed once."""
    steps: int
    """Optimizer steps in all epochs."""
    parameters: int
    trained_parameters: int
    memory_gib: float
    """Memory of weights, gradients and optimizer; activations, which `train.micro_batch_tokens` limits, come on top."""
    seconds: float | None
    """Duration at the tokens per second of an earlier training; `None` if the run has none."""
    measured_on: str | None
    """Version whose training it was."""
    labels: dict[str, int]
    """Number of rows by label."""
    remedies: dict[str, str]
    """Remedies for the credited labels without a row."""


def plan_training(
    trajectories: Iterable[Trajectory], *, start: PolicyStart, config: TrainConfig, policies_dir: Path
) -> TrainPlan:
    """Plan the training of a policy, without loading its weights.

    Raises:
        TrainingError: no row can be trained on.
        ConfigError: the model cannot be trained.
    """
    retokenise = Retokeniser(load_tokenizer(start)) if config.retokenise == "allow" else None
    lineage = lineage_of(policies_dir, start.version)
    rows, report = file_rows(trajectories, config=config, version=start.version, lineage=lineage, retokenise=retokenise)
    tries = len({*tries_of(rows.dataset)})
    tokens = config.epochs * (report.prompt_tokens + report.completion_tokens + report.between_tokens)
    weights = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in _shape(start, config).parameters()]
    trained = sum(count for count, _, trains in weights if trains)
    seconds_per_token, measured_on = _measured(policies_dir, config)
    return TrainPlan(
        rows=len(rows),
        tries=tries,
        tokens=tokens,
        steps=config.epochs * math.ceil(tries / config.batch_size),
        parameters=sum(count for count, *_ in weights),
        trained_parameters=trained,
        memory_gib=round((sum(size for _, size, _ in weights) + STATE_BYTES * trained) / 2**30, 6),
        seconds=seconds_per_token and round(tokens * seconds_per_token, 1),
        measured_on=measured_on,
        labels=report.labels,
        remedies=report.remedies,
    )


def _shape(start: PolicyStart, config: TrainConfig) -> Any:
    """Return the model to train without memory for its weights."""
    with loading(start), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(read_config(start, config), dtype=loaded_dtype(config))
    if config.method == "lora":
        return add_adapter(model, start, config)
    freeze_towers(model)
    return model


def _measured(policies_dir: Path, config: TrainConfig) -> tuple[float | None, str | None]:
    """Return the seconds per token of the run's newest training by the same method, and its version.

    One by the same recipe is preferred: a prompt that siblings share takes its time once.
    """
    found: list[tuple[float, str, bool]] = []
    registry = Registry(policies_dir.parent)
    for card in map(registry.card, registry.versions()):
        rows = card.metrics.get("rows", {})
        tokens = sum(rows.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "between_tokens"))
        if card.kind == config.method and tokens and card.settings.get("epochs"):
            speed = card.metrics["seconds"] / tokens / card.settings["epochs"]
            found.append((speed, card.version, card.settings.get("recipe") == config.recipe))
    if not found:
        return None, None
    speed, version, _ = next((each for each in reversed(found) if each[-1]), found[-1])
    return speed, version
