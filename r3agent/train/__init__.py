"""Training on recorded spans.

Importing this package loads neither torch nor TRL; the first use of `train` does.
"""

import sys
from typing import TYPE_CHECKING

from r3agent._util.imports import require_extra
from r3agent._util.lazy import lazy_names
from r3agent.errors import ConfigError


def _prepare(name: str) -> None:
    """Check that the packages that `train` needs are installed."""
    if name == "train":
        if sys.flags.optimize > 1:
            raise ConfigError(
                "PYTHONOPTIMIZE = 2 removes the docstrings that transformers reads; unset it, or set it to 1"
            )
        require_extra("trl", "train")


if TYPE_CHECKING:
    from r3agent.train.config import PolicyStart as PolicyStart
    from r3agent.train.config import TrainConfig as TrainConfig
    from r3agent.train.report import RowReport as RowReport
    from r3agent.train.row import Row as Row
    from r3agent.train.rows import build_rows as build_rows
    from r3agent.train.rows import credit_spans as credit_spans
    from r3agent.train.rows import to_dataset as to_dataset
    from r3agent.train.run import train as train
else:
    __getattr__, __dir__ = lazy_names(__name__, _prepare)
