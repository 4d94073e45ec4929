"""Environment of a distributed launcher such as torchrun, and the leftovers of one that did not start this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun, accelerate and DeepSpeed set, all of them, in every process that they start."""

READ_BY_ACCELERATE = (
    "ACCELERATE_",
    "FSDP_",
    "PARALLELISM_CONFIG_",
    "PMI_",
    "MPI_LOCAL",
    "OMPI_COMM_WORLD_",
    "MV2_COMM_",
)
"""Beginnings of further variables that make accelerate compute in another way."""


def launched_rank() -> int | None:
    """Return the rank of this process among those that a launcher started, or `None` if none started it."""
    values = [os.environ.get(name, "") for name in SET_BY_LAUNCHERS]
    rank, local_rank, world_size, _, port = values
    if not all(values) or not all(map(str.isdecimal, (rank, local_rank, world_size, port))):
        return None
    return int(rank) if int(rank) < int(world_size) else None


@contextmanager
def without_leftovers() -> Generator[None]:
    """Hide the variables of a launcher inside the block, unless one started this process."""
    hidden: dict[str, str] = {}
    if launched_rank() is None:
        names = [name for name in os.environ if name in SET_BY_LAUNCHERS or name.startswith(READ_BY_ACCELERATE)]
        hidden = {name: os.environ.pop(name) for name in sorted(names)}
    if hidden:
        logger.warning(
            "%s: ignored, because no launcher started this process, and it trains alone; start several processes with "
            "torchrun",
            ", ".join(f"{name}={value}" for name, value in hidden.items()),
        )
    try:
        yield
    finally:
        os.environ.update(hidden)
