"""TRL's settings for training on recorded rows.

Each one that the loss depends on is named, so that no default of TRL's changes it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from trl.trainer.grpo_config import GRPOConfig

from r3agent.train.collate import MicroBatches
from r3agent.train.config import TrainConfig


class OneDevice(GRPOConfig):
    """Arguments of a process that computes on one GPU, also if it sees several and no launcher started it."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def grpo_arguments(config: TrainConfig, batches: MicroBatches, output_dir: Path) -> GRPOConfig:
    """Make the trainer's arguments from the settings of a training."""
    return OneDevice(
        output_dir=str(output_dir),
        # the loss
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        temperature=1.0,
        beta=0.0,
        use_bias_correction_kl=False,
        epsilon=config.epsilon_low,
        epsilon_high=config.epsilon_high + (config.loss_type == "cispo"),  # there, the limit of the ratio itself
        delta=None,
        max_completion_length=config.max_row_tokens,  # the divisor of dr_grpo
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_adaptive_entropy=False,
        router_aux_loss_coef=None,  # the model's own
        cast_lm_head_to_fp32=False,
        disable_dropout=False,
        use_vllm=False,
        num_iterations=1,
        # the optimizer
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler,
        # rounded down: transformers would round the ratio up, and the first warmup step has learning rate 0
        warmup_steps=int(config.warmup_ratio * batches.steps * config.epochs),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=batches.accumulate,
        seed=config.seed,
        use_cpu=not torch.accelerator.is_available(),
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        # TRL requires complete groups of at least 2 in a generation batch, although nothing is generated
        per_device_train_batch_size=1,
        num_generations=2,
        steps_per_generation=2 * batches.accumulate,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        # no progress bar and no service: `train` reports progress and metrics itself
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite would be logged as 0
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
    )
