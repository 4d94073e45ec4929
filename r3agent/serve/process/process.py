"""Base class for servers in a child process: the embedded server and vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

import httpx

from r3agent._util import guard
from r3agent._util.files import last_lines
from r3agent._util.wait import wait_until
from r3agent.errors import ConfigError, EndpointError
from r3agent.http.client import ClientSettings
from r3agent.http.urls import ApiURL

POLL_S = 0.1
STOP_S = guard.GRACE_S + 5


class Choice(NamedTuple):
    """Options and environment variables that are chosen for a machine, and why."""

    options: tuple[str, ...]
    reason: str
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [*(f"{name}={value}" for name, value in self.variables), *self.options]
        return f"with {' '.join(words)}: {self.reason}"


class LocalServer(ABC):
    """Server in a child process; a context manager that starts, awaits and stops it.

    It has its own session, so Ctrl-C reaches only this process, and a guard that kills it, with all its processes, when
    this process is gone.

    Args:
        name: served name of the model.
        log_path: file for its output; default a temporary file.
        timeout_s: time limit for loading the model.
    """

    def __init__(self, *, name: str, log_path: str | Path | None, timeout_s: float) -> None:
        self.name = name
        self.log_path = Path(log_path or Path(mkdtemp(prefix="r3agent-serve-")) / "server.log")
        self.base_url = ""
        """Base URL of the API, ending in /v1; empty until the server has started."""
        self.choices: Sequence[Choice] = ()
        """Settings that are chosen for this machine."""
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _launch(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Return the command and its environment."""

    def _find_address(self, log: str) -> str:
        """Return the API's base URL, from the log so far; empty until it is known."""
        return self.base_url

    def _explain(self, log: str) -> str:
        """Return the cause of the server's failure and a remedy; empty if the log does not show it."""
        return ""

    @property
    def pid(self) -> int | None:
        """Process id of the guard, which forwards SIGTERM; the server is its child."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it is healthy.

        Raises:
            EndpointError: the server ended or was not healthy in time; the message has the end of its log and, if
                known, the cause.
            ConfigError: the settings are invalid, or the log cannot be written.
        """
        command, environment = self._launch()
        try:
            log = self.log_path.open("wb")
        except OSError as error:
            raise ConfigError(f"log_path = {self.log_path}: {error.strerror}; choose a writable place") from error
        # Isolated, so that the modules beside guard.py do not shadow the standard library's.
        guarded = [sys.executable, "-I", guard.__file__, str(os.getpid()), "--", *command]
        with log:
            self._process = subprocess.Popen(
                guarded, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            self._wait_until_healthy(self._process)
        except BaseException:
            self.stop()
            raise

    def watch(self) -> NoReturn:
        """Wait until the server ends by itself.

        Raises:
            EndpointError: the server has ended, as in `start`.
        """
        assert self._process is not None, "watch follows start"
        self._fail(self._process.wait())

    def stop(self) -> None:
        """Stop the server and all its processes; kill it if it does not end in time."""
        if self._process is None:
            return
        process = self._process
        try:
            process.terminate()
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end_group(process.pid)
        process.wait()
        self._process = None

    def last_log_lines(self) -> str:
        return last_lines(self._log())

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        # This machine's servers are not behind its proxy.
        with ClientSettings(timeout_s=5, trust_env=False).open() as client:

            def is_healthy() -> bool:
                self.base_url = self._find_address(self._log())
                if self.base_url and _is_healthy(client, self.base_url):
                    return True
                if (code := process.poll()) is not None:
                    self._fail(code)
                return False

            is_ready = wait_until(is_healthy, timeout_s=self._timeout_s, poll_s=POLL_S)
        if not is_ready:
            raise EndpointError(
                f"the server was not healthy within timeout_s = {self._timeout_s:g}; raise it, or look at "
                f"{self.log_path}, which ends:\n{self.last_log_lines()}"
            )

    def _fail(self, code: int) -> NoReturn:
        cause = self._explain(f"{self._log()}\nexit code {code}")
        raise EndpointError(
            f"the server ended with exit code {code}; {self.log_path} ends:\n{self.last_log_lines()}"
            + (f"\nlikely cause: {cause}" if cause else "")
        )


def _end_group(leader: int) -> None:
    """Kill the rest of a group whose leader has ended or does not react, after a grace period to free resources."""
    with suppress(ProcessLookupError, PermissionError):  # no process is left, or only zombies
        wait_until(lambda: os.killpg(leader, 0), timeout_s=guard.LINGER_S, poll_s=POLL_S)
        os.killpg(leader, signal.SIGKILL)


def _is_healthy(client: httpx.Client, base_url: str) -> bool:
    try:
        return client.get(ApiURL(base_url).server_route("/health")).is_success
    except httpx.RequestError:
        return False
