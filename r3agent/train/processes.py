"""Processes of a training: one, or as many as a launcher started."""

from __future__ import annotations

import logging
import os

import torch
from accelerate import PartialState
from torch.distributed import DistError

from r3agent._util.launcher import SET_BY_LAUNCHERS, launched_rank
from r3agent.errors import ConfigError

logger = logging.getLogger(__name__)


def join_processes() -> PartialState:
    """Join the processes that a launcher started, or be the only one.

    Raises:
        ConfigError: the others do not come, or have other settings.
    """
    env = os.environ
    if launched_rank() is not None and env["WORLD_SIZE"] != "1" and "TORCHELASTIC_RUN_ID" not in env:
        # torchrun starts all of them itself; what else set the variables may be gone
        logger.warning(
            "process %s of %s: waiting for the others at %s:%s; if there are none, unset %s",
            *(env[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
            ", ".join(SET_BY_LAUNCHERS),
        )
    try:
        processes = PartialState(cpu=not torch.accelerator.is_available())
    except DistError as error:
        settings = ", ".join(f"{name}={env.get(name)}" for name in SET_BY_LAUNCHERS)
        raise ConfigError(
            f"the other processes did not come ({settings}): {str(error).splitlines()[0]}; start all of them with "
            "torchrun, or unset these variables to train with one"
        ) from error
    if processes.num_processes == 1 and (notice := notice_of_devices(torch.accelerator.device_count())):
        logger.warning(notice)
    return processes


def notice_of_devices(count: int) -> str | None:
    """Return the notice for a single process that sees `count` GPUs, or `None`."""
    if count < 2:
        return None
    return (
        f"{count} GPUs are visible, and one process trains on the first of them; `torchrun --nproc-per-node {count} "
        "-m -- r3agent train ...` trains on all, and CUDA_VISIBLE_DEVICES chooses another"
    )
