"""Embedded server in a child process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from r3agent._util.checked import Port, Positive, checked
from r3agent.serve.process.options import API_KEY_VARIABLE
from r3agent.serve.process.process import LocalServer
from r3agent.store.models import default_name


class ServerProcess(LocalServer):
    """Process that runs `r3agent serve MODEL`; a context manager that starts, awaits and stops it.

    Args:
        model: checkpoint directory, hub id or `bundled`.
        name: served name; default the directory's name.
        port: port to listen on; 0 chooses a free one.
        log_path: file for its output; default a temporary file.
        timeout_s: time limit for loading the model.
        options: more command-line arguments, e.g. `["--threads", "1"]`.
    """

    @checked
    def __init__(
        self,
        model: str | Path = "bundled",
        *,
        name: str | None = None,
        port: Port = 0,
        api_key: str | None = None,
        log_path: str | Path | None = None,
        timeout_s: Positive = 180.0,
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
