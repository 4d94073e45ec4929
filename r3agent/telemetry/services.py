"""Services that metrics go to: what each needs, checked before any work."""

from __future__ import annotations

import netrc
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from r3agent._util.imports import require_package
from r3agent.errors import ConfigError

Service: TypeAlias = Literal["none", "tensorboard", "wandb", "trackio"]


def check_service(service: Service, setting: str = "report_to") -> None:
    """Check that a service is installed and can be used without a question at the terminal.

    Args:
        setting: name of the setting that names it.

    Raises:
        ConfigError: its package is missing, or the API key of W&B.
    """
    if service == "none":
        return
    require_package(service, f"{setting} = {service!r}")
    if service == "wandb" and not _has_wandb_key():
        raise ConfigError(
            f"{setting} = 'wandb': there is no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
        )


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
