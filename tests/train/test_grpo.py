"""The loss is TRL's, on recorded tokens and with recorded logprobs in the ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

from r3agent.train import PolicyStart, Row, TrainConfig, build_rows, to_dataset
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.weights import load_model
from r3agent.trajectory import Trajectory
from tests.train.recorded import load, logprobs, record

GROUP = 4
OUTCOMES = [[1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]]


def loss_and_gradients(trainer: GRPOTrainer, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one optimizer step, through `Trainer.training_step`."""
    losses = [trainer.training_step(trainer.model, batch, None) for batch in batches]
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return sum(losses).item(), gradients


def step(trainer: OfflineGRPOTrainer) -> list[Any]:
    """The micro-batches of one optimizer step that takes all rows."""
    loader = trainer.get_train_dataloader()
    return trainer.get_batch_samples(iter(loader), len(loader), torch.device("cpu"))[0]


def shift(model: torch.nn.Module) -> None:
    """Move the weights that train, the same way each time."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)


def rows_of(trajectories: list[Trajectory], config: TrainConfig) -> list[Row]:
    return build_rows(trajectories, config=config, version="v0000")[0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_equals_stock_trl_when_recorded_logprobs_are_current(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, method: str, loss_type: str, beta: float
) -> None:
    config = TrainConfig.model_validate({"method": method, "loss_type": loss_type, "beta": beta, "lora_r": 4,
                                         "batch_size": 12, "micro_batch_size": 12})
    current = load_model(start, config)
    shift(current)
    rows = rows_of(record(current.eval(), tokenizer, OUTCOMES), config)

    ours = OfflineGRPOTrainer(load_model(start, config), to_dataset(rows), tokenizer, config, tmp_path)
    ours.score()  # the reference: the weights before they move
    shift(ours.model)
    stock = stock_trainer(start, tokenizer, config, rows, tmp_path)
    shift(stock.model)

    loss, gradients = loss_and_gradients(ours, step(ours))
    expected_loss, expected_gradients = loss_and_gradients(stock, [next(iter(stock.get_train_dataloader()))])
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


def stock_trainer(
    start: PolicyStart, tokenizer: PreTrainedTokenizerFast, config: TrainConfig, rows: list[Row], directory: Path
) -> GRPOTrainer:
    """TRL as it is, given the same tokens through `rollout_func` and the same rewards."""
    from datasets import Dataset

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        seen: dict[str, int] = {}
        chosen = []
        for prompt in prompts:
            seen[prompt] = seen.get(prompt, -1) + 1
            chosen.append([row for row in rows if row.group_id == prompt][seen[prompt]])
        return {
            "prompt_ids": [row.prompt_ids_P for row in chosen],
            "completion_ids": [row.completion_ids_T for row in chosen],
            "logprobs": [row.logprobs_T for row in chosen],
            "recorded": [row.reward for row in chosen],
        }

    set_seed(config.seed)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return GRPOTrainer(
        model=load(start.model),
        peft_config=lora if config.method == "lora" else None,
        reward_funcs=lambda recorded, **_: recorded,
        rollout_func=rollout,
        train_dataset=Dataset.from_dict({"prompt": sorted({row.group_id for row in rows})}),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(directory),
            per_device_train_batch_size=len(rows),
            num_generations=GROUP,
            loss_type=config.loss_type,
            beta=config.beta,
            max_completion_length=max(len(row.completion_ids_T) for row in rows),
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            seed=config.seed,
        ),
    )
