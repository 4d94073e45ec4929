"""`r3agent demo`: the whole loop on one machine, with the embedded server and the bundled policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from r3agent.config import load_config
from r3agent.errors import ConfigError
from r3agent.evaluate import Evaluation
from r3agent.loop import Reporter, run_loop
from r3agent.run import CONFIG_FILE, Run, write_atomically
from r3agent.serve import ServerProcess
from r3agent.store import load
from r3agent.trajectory import Record

SETTINGS: dict[str, Any] = {
    "sampling.max_tokens": 24,
    "collect.n": 320,
    "collect.reflections": 8,
    "collect.blind_retries": 0,
    "train.learning_rate": 1e-3,
    "train.batch_size": 256,
    "train.micro_batch_size": 256,
    "eval.n": 600,
    "loop.rounds": 6,
    "loop.evaluate_every": 6,
}
"""What differs from the defaults: a tiny policy takes larger steps, and many of them, in little time."""


class Cells(Record):
    """Shares of the held-out tasks."""

    first_try: float
    after_reflection: float
    blind_retry: float


class DemoSummary(Record):
    """`summary.json` of a demo."""

    seed: int
    seconds: float
    n_tasks: int
    before: Cells
    after: Cells
    lift_points: float
    """Change of `after_reflection`, in percentage points."""
    p_value: float
    """Of that change: exact paired test."""
    policy_before: str
    policy_after: str
    tokens_sampled: int
    rounds: int


def run_demo(out: Path, seed: int, reporter: Reporter) -> tuple[DemoSummary, str]:
    """Run or finish the demo in `out`; returns its summary and the text of the comparison.

    Raises:
        ConfigError: `out` holds another run, or cannot be written.
        R3Error: a stage failed; the same call goes on from there.
    """
    began = time.monotonic()
    file = out / CONFIG_FILE
    if file.exists() and (known := load_config(file, {}).task.seed) != seed:
        raise ConfigError(f"--seed {seed}, but {out} is a run with seed {known}; choose another directory with --out")
    reporter.stage("starting the embedded server with the bundled policy")
