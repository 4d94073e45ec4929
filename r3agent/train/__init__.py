"""Training on recorded spans. Importing this loads neither torch nor TRL; `train` does, when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r3agent._util.imports import require_extra
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.report import RowReport
from r3agent.train.row import Row
from r3agent.train.rows import build_rows, credit_spans, to_dataset

if TYPE_CHECKING:
    from r3agent.train.run import train

__all__ = ["PolicyStart", "Row", "RowReport", "TrainConfig", "build_rows", "credit_spans", "to_dataset", "train"]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_extra("trl", "train")
    from r3agent.train.run import train

    return train
