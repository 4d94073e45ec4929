"""The server as a process of its own, for programs that need one for a while."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType

from r3agent.errors import ConfigError, EndpointError
from r3agent.serve.flags import API_KEY_VARIABLE

POLL_S = 0.1
STOP_S = 15.0
LAST_LINES = 15


class ServerProcess:
    """`python -m r3agent.serve MODEL`, started, waited for and stopped; a context manager.

    The server has a session of its own, so Ctrl-C reaches only this process, and stops by itself when this process
    is gone.

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
        self.log_path = log_path or Path(mkdtemp(prefix="r3agent-serve-")) / "server.log"
        self.base_url = ""
        """The API's address, ending in /v1; known once the server has started."""
        self._timeout_s = timeout_s
        self._api_key = api_key
        self._command = [sys.executable, "-m", "r3agent.serve", str(model), "--port", str(port)]
        self._command += ["--parent-pid", str(os.getpid()), *(["--name", name] if name else []), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the server is healthy.

        Raises:
            EndpointError: it ended or did not get there in time; the message has the end of its log.
            ConfigError: the log cannot be written.
        """
        environment = {**os.environ, **({API_KEY_VARIABLE: self._api_key} if self._api_key else {})}
        try:
            log = self.log_path.open("wb")
        except OSError as error:
            raise ConfigError(f"log_path = {self.log_path}: {error.strerror}; choose a writable place") from error
        with log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            self._wait_until_healthy(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask it to stop, and after a while insist."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def last_log_lines(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:])

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not (self.base_url and _is_healthy(self.base_url.removesuffix("/v1"))):
            if (code := process.poll()) is not None:
                raise EndpointError(
                    f"the server ended with exit code {code}; {self.log_path} ends:\n{self.last_log_lines()}"
                )
            if time.monotonic() > deadline:
                raise EndpointError(
                    f"the server was not healthy within timeout_s = {self._timeout_s:g}; raise it, or look at "
                    f"{self.log_path}, which ends:\n{self.last_log_lines()}"
                )
            time.sleep(POLL_S)
            if announced := re.search(r"^serving .* on (http://\S+)$", self.log_path.read_text(errors="replace"), re.M):
                self.base_url = announced[1]


def _is_healthy(root: str) -> bool:
    try:
        with urllib.request.urlopen(f"{root}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
