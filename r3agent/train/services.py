"""Services that transformers logs the steps of a training to: what they need, checked before any work."""

from __future__ import annotations

import netrc
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from r3agent._util.imports import require_package
from r3agent.errors import ConfigError
from r3agent.train.config import TrainConfig

TENSORBOARD_DIR = "TENSORBOARD_LOGGING_DIR"
"""Environment variable that transformers reads the directory of TensorBoard's logs from."""


def check_service(config: TrainConfig) -> None:
    """Check that the service of `report_to` is installed and can be used without a question at the terminal.

    Raises:
        ConfigError: its package is missing, or the API key of W&B.
    """
    if config.report_to == "none":
        return
    require_package(config.report_to, f"report_to = {config.report_to!r}")
    if config.report_to == "wandb" and not _has_wandb_key():
        raise ConfigError(
            "report_to = 'wandb': there is no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
        )


@contextmanager
def logs_beside(version_dir: Path, config: TrainConfig) -> Generator[None]:
    """Let TensorBoard's log stay when the checkpoints are removed: in `tensorboard/`, with one folder per version."""
    if config.report_to != "tensorboard" or TENSORBOARD_DIR in os.environ:
        yield
        return
    os.environ[TENSORBOARD_DIR] = str(version_dir.parent / "tensorboard" / version_dir.name)
    try:
        yield
    finally:
        del os.environ[TENSORBOARD_DIR]


def _has_wandb_key() -> bool:
    env = os.environ
    if env.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(env.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    for path in (env.get("NETRC"), "~/.netrc", "~/_netrc"):  # where `wandb login` stores it
        with suppress(OSError, netrc.NetrcParseError, RuntimeError):
            if path and netrc.netrc(Path(path).expanduser()).authenticators(host):
                return True
    return False
