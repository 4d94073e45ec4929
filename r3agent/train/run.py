"""One training: trajectories and the policy that sampled them in, a new policy version out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent.errors import ConfigError
from r3agent.files import writing
from r3agent.registry import PolicyCard, growing, write_card
from r3agent.train.batch import build_rows, to_dataset
from r3agent.train.canary import canary, canary_logprobs, canary_sequences
from r3agent.train.config import TrainConfig
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.mismatch import check, measure
from r3agent.train.retokenise import Retokeniser
from r3agent.train.start import PolicyStart
from r3agent.train.weights import load_model, load_tokenizer, save_weights
from r3agent.trajectory import Trajectory

Progress: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Told of each stage as it ends: `rows`, `mismatch`, every `step`, `saved`; with what is known of it."""


def train(
    trajectories: Iterable[Trajectory],
    *,
    start: PolicyStart,
    version: str,
    out_dir: Path,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
) -> PolicyCard:
    """Train `start` on its recorded reflections and write the result, weights and card, as `version` to `out_dir`.

    `out_dir` appears in one rename when everything is in it, or not at all.

    Raises:
        TrainingError: no row can be trained on, or the rows are another policy's.
        ConfigError: weights cannot be loaded, or `out_dir` cannot be written.
    """
    config = config or TrainConfig()
    progress = progress or _unwatched
    if (processes := PartialState(cpu=not torch.accelerator.is_available()).num_processes) > 1:
        raise ConfigError(f"{processes} processes: training runs in one; start it without a distributed launcher")
    began = time.perf_counter()
    with growing(out_dir) as directory:
        tokenizer = load_tokenizer(start)
        retokenise = Retokeniser(tokenizer) if config.retokenise == "allow" else None
        rows, report = build_rows(trajectories, config=config, version=start.version, retokenise=retokenise)
        progress("rows", report.model_dump())

        model = load_model(start, config)
        trainer = OfflineGRPOTrainer(
            model, to_dataset(rows), tokenizer, config, directory, callbacks=[_StepProgress(progress)]
        )
        mismatch = measure(rows, trainer.score(), start.version)
        progress("mismatch", mismatch.model_dump())
        check(mismatch, config, start)

        sequences = canary_sequences(rows)
        parent_logprobs = canary_logprobs(trainer, sequences)
        trainer.train()
        card = PolicyCard(
            version=version,
            name=start.name,
            kind=config.method,
            base_model=start.base_model or start.model,
            parent=start.version,
            settings=config.model_dump(mode="json"),
            metrics={
                "rows": report.model_dump(mode="json"),
                "mismatch": mismatch.model_dump(mode="json"),
                "steps": trainer.state.global_step,
                "train": _means(trainer.state.log_history),
                "seconds": round(time.perf_counter() - began, 3),
            },
            canary=canary(sequences, canary_logprobs(trainer, sequences), parent_logprobs),
        )
        with writing(directory, SafetensorError):
            save_weights(trainer.accelerator.unwrap_model(trainer.model), tokenizer, directory, start)
        write_card(directory, card)
    progress("saved", {"directory": str(out_dir), "seconds": card.metrics["seconds"]})
    return card


def _unwatched(stage: str, values: Mapping[str, Any]) -> None:
    pass


class _StepProgress(TrainerCallback):
    """Tells of each optimizer step what TRL logs of it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" in logs:
            self.progress("step", {"step": state.global_step, "steps": state.max_steps, **logs})


LOGGED = ("loss", "grad_norm", "kl", "entropy", "clip_ratio/region_mean")
"""What the card keeps of TRL's log, as means over the steps."""


def _means(history: list[dict[str, Any]]) -> dict[str, float]:
    logged = {key: [entry[key] for entry in history if entry.get(key) is not None] for key in LOGGED}
    return {key: fmean(values) for key, values in logged.items() if values}
