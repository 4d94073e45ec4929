"""The embedded server as a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from r3agent.serve.process.options import API_KEY_VARIABLE
from r3agent.serve.process.process import LocalServer
from r3agent.store.models import default_name


class ServerProcess(LocalServer):
    """`r3agent serve MODEL`, started, waited for and stopped; a context manager.

    Args:
        model: a checkpoint directory, a hub id or `bundled`.
        name: what it is served as; default the directory's name.
        port: 0 takes a free one.
        log_path: where its output goes; default a temporary file.
        timeout_s: for loading the model.
        options: further arguments of the command line, e.g. `["--threads", "1"]`.
    """

    def __init__(
        self,
        model: str | Path = "bundled",
        *,
        name: str | None = None,
        port: int = 0,
        api_key: str | None = None,
        log_path: Path | None = None,
        timeout_s: float = 180.0,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(name=name or default_name(str(model)), log_path=log_path, timeout_s=timeout_s)
        self._command = [sys.executable, "-m", "r3agent", "serve", str(model), "--port", str(port)]
        self._command += [*(["--name", name] if name else []), *options]
        self._environment = {API_KEY_VARIABLE: api_key} if api_key else {}

    def _launch(self) -> tuple[list[str], dict[str, str]]:
        return self._command, {**os.environ, **self._environment}

    def _find_address(self, log: str) -> str:
        announced = re.search(r"^serving .* on (http://\S+)$", log, re.M)
        return announced[1] if announced else ""
