"""KTO, by TRL, on recorded rows: whether a reflection's retry passed makes it desirable or not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from r3agent.store.registry import PolicyCard, create_version, write_card
from r3agent.train import PolicyStart, Row, TrainConfig
from r3agent.train.weights import load_model, load_tokenizer, save_weights

SETTINGS: dict[str, Any] = {"loss_type": "kto", "beta": 0.1, "undesirable_weight": 1.0, "num_train_epochs": 1}
"""Settings besides those of the training; the desirable rows weigh as much, in sum, as the others."""


class Recorded(KTOTrainer):
    """Trainer on the tokens that were sampled, which TRL would otherwise make from text."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, dataset_name: str) -> Any:
        return dataset


def columns_of(rows: Sequence[Row], batch_size: int) -> dict[str, list[Any]]:
    """Return the columns of KTO's data; the label is the reward, since an advantage also depends on the baseline."""
    completions = [row.completion_ids_T for row in rows]
    shifted: list[list[int]] = []  # of another prompt in the same batch, for the KL
    for first in range(0, len(rows), batch_size):
        batch = completions[first : first + batch_size]
        shifted += [batch[-1], *batch[:-1]]
    return {
        "prompt_ids": [row.prompt_ids_P for row in rows],
        "completion_ids": completions,
        "KL_completion_ids": shifted,
        "label": [row.reward > 0 for row in rows],
    }


def train(rows: Sequence[Row], start: PolicyStart, config: TrainConfig, version: str, out_dir: Path) -> int:
    """Train a version with KTO, and return its steps: reflections whose retry passed are the desirable ones."""
    columns = columns_of(random.Random(config.seed).sample(rows, len(rows)), config.batch_size)
    desirable = sum(columns["label"])
    model, tokenizer = load_model(start, config), load_tokenizer(start)
    scratch = out_dir.with_suffix(".kto")
    arguments = KTOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=int(config.warmup_ratio * len(rows) / config.batch_size),
        max_grad_norm=config.max_grad_norm,
        desirable_weight=(len(rows) - desirable) / max(1, desirable),
        **SETTINGS,
        seed=config.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Recorded(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shutil.rmtree(scratch, ignore_errors=True)
    model.delete_adapter("ref")
    card = PolicyCard(
        version=version, name=start.name, kind="lora", base_model=start.base_model or start.model, parent=start.version
    )
    with create_version(out_dir) as directory:
        save_weights(model, tokenizer, directory, start)
        write_card(directory, card)
    return trainer.state.global_step
