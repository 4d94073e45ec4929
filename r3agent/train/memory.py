"""Out of memory, and what to do about it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from r3agent.errors import TrainingError
from r3agent.train.config import TrainConfig


@contextmanager
def enough_memory(config: TrainConfig) -> Generator[None]:
    """
    Raises:
        TrainingError: the block ran out of memory; with the settings that need less of it.
    """
    try:
        yield
    except RuntimeError as error:
        # a GPU's has a class of its own, main memory's only a message
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(f"out of memory ({str(error).splitlines()[0]}); {_remedy(config)}") from error


def _remedy(config: TrainConfig) -> str:
    less = [
        f"lower train.micro_batch_tokens = {config.micro_batch_tokens}",
        f"lower train.max_row_tokens = {config.max_row_tokens}",
        *(["set train.gradient_checkpointing = true"] if not config.gradient_checkpointing else []),
        *(["set train.dtype = 'bfloat16'"] if config.dtype == "float32" else []),
        *(["set train.method = 'lora'"] if config.method == "full" else []),
    ]
    return ", or ".join(less)
