"""Start programs in the sandbox, collect their output, stop them and report."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from r3agent._util.wait import wait_until
from r3agent.errors import ConfigError, VerifierError
from r3agent.verifiers.sandbox import container, scratch
from r3agent.verifiers.sandbox.layers import LAYERS, Layer, check, lacking
from r3agent.verifiers.sandbox.limits import Limits, Outcome, Overrun
from r3agent.verifiers.sandbox.packages import Packages

GRACE_S = 5.0
"""Seconds for a supervisor to kill everything after a limit, before it is killed itself."""
CLOSING_S = 0.5
"""Seconds for a container's command to end after its output has."""

_BOOT = "import sys; sys.path.append(sys.argv.pop()); from inside.launch import main; main()"


def run_python(
    source: str,
    *,
    stdin: bytes = b"",
    limits: Limits | None = None,
    layers: Sequence[Layer] = LAYERS,
    command: Sequence[str] = (),
    packages: Packages | None = None,
) -> Outcome:
    """Run a program as `python -I -S` would, in the sandbox, or in the container that `command` starts.

    Args:
        layers: required layers; if one is missing, the program does not run. Fewer layers isolate less.
        command: command that starts Python with the options appended to it; see `README.md`.
        packages: packages that the program may import; what a command starts has its own.

    Raises:
        ConfigError: this machine lacks a layer.
        VerifierError: the sandbox itself failed.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        file = stack.enter_context(TemporaryFile())
        file.write(stdin)
        file.seek(0)
        program = stack.enter_context(
            _Program(
                source,
                stdin=file,
                stdout=subprocess.PIPE,
                limits=limits,
                layers=layers,
                command=command,
                packages=packages,
            )
        )
        _listen([program], limits)
        return program.outcome()


def run_dialogue(
    first: str,
    second: str,
    *,
    limits: Limits | None = None,
    layers: Sequence[Layer] = LAYERS,
    command: Sequence[str] = (),
    packages: Packages | None = None,
) -> tuple[Outcome, Outcome]:
    """Run two programs concurrently, each in its own sandbox; the stdout of each is the stdin of the other.

    When the first ends, the second is stopped. Raises the same errors as `run_python`.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        files = [stack.enter_context(end) for end in (*_pipe(), *_pipe())]
        to_first, from_second, to_second, from_first = files
        settings: dict[str, Any] = {"limits": limits, "layers": layers, "command": command, "packages": packages}
        programs = [
            stack.enter_context(_Program(first, stdin=to_first, stdout=from_first, **settings)),
            stack.enter_context(_Program(second, stdin=to_second, stdout=from_second, **settings)),
        ]
        for file in files:  # each end now belongs to one program, so it closes when that program ends
            file.close()
        _listen(programs, limits)
        return programs[0].outcome(), programs[1].outcome()


class _Program:
    """Running program; leaving its context stops it with all its processes."""

    def __init__(
        self,
        source: str,
        *,
        stdin: IO[bytes],
        stdout: IO[bytes] | int,
        limits: Limits,
        layers: Sequence[Layer],
        command: Sequence[str],
        packages: Packages | None,
    ) -> None:
        self.limits = limits
        self.received: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self.overrun: Overrun | None = None
        self._began = time.monotonic()
        self.is_contained = bool(command)
        self._scratch: str | None = None
        with ExitStack() as stack:
            if command:
                arguments, passed = [*command, *container.options(source, limits)], []
                report = life = None
                environment = None
            else:
                check(layers)
                file = stack.enter_context(TemporaryFile())
                file.write(source.encode("utf-8", "surrogatepass"))
                file.seek(0)
                life, self._life = _pipe()
                stack.callback(life.close)
                self._report, report = _pipe()
                stack.callback(report.close)
                own = None
                if "namespaces" not in layers:
                    self._scratch, own = scratch.make()
                passed = [file.fileno(), life.fileno(), report.fileno()]
                keys = ("program_fd", "life_fd", "report_fd")
                spec = asdict(limits) | dict(zip(keys, passed, strict=True))
                spec |= {"layers": list(layers), "scratch": own, "shown": list(packages.paths if packages else ())}
                here = str(Path(__file__).parent)
                arguments = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, json.dumps(spec), here]
                environment = {}
            try:
                self.process = subprocess.Popen(
                    arguments,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    env=environment,
                    pass_fds=passed,
                    start_new_session=True,
                )
            except OSError as error:
                raise ConfigError(f"sandbox command {arguments[0]}: {error.strerror}; name one that is there") from None

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for file in (self.process.stdout, self.process.stderr):
            if file is not None:
                file.close()
        if not self.is_contained:
            self._report.close()
        if self._scratch:
            scratch.remove(self._scratch)

    def streams(self) -> dict[str, IO[bytes]]:
        report = {} if self.is_contained else {"report": self._report}
        found = {"stdout": self.process.stdout, "stderr": self.process.stderr, **report}
        return {name: stream for name, stream in found.items() if stream is not None}

    def end(self) -> None:
        """Stop it through its supervisor, or the container's command with SIGTERM; then kill the rest."""
        if self.process.returncode is not None:
            return
        if not self.is_contained:
            self._life.close()
        elif self.overrun or not self._has_ended(CLOSING_S):
            os.killpg(self.process.pid, signal.SIGTERM)
        self._has_ended(GRACE_S)
        os.killpg(self.process.pid, signal.SIGKILL)  # not yet reaped, so the group is still its own
        self.process.wait()

    def _has_ended(self, within_s: float) -> bool:
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        ended = wait_until(lambda: os.waitid(os.P_PID, self.process.pid, options), timeout_s=within_s, poll_s=0.05)
        return ended is not None

    def outcome(self) -> Outcome:
        self.end()
        if not self.is_contained:
            self.received["report"] += self._report.read() or b""
        report: dict[str, Any] = {}
        if self.is_contained:
            report = {"exit_code": self.process.returncode, "wall_s": time.monotonic() - self._began}
        elif self.received["report"]:
            report = json.loads(self.received["report"])
        elif self.overrun is None:
            last = self.received["stderr"][-500:].decode(errors="replace")
            raise VerifierError(f"the sandbox ended with {self.process.returncode} and no report: {last}")
        if "missing" in report:
            raise ConfigError(lacking(report["missing"], report["why"]))
        if "broken" in report:
            raise VerifierError(f"the sandbox broke down: {report['broken']}")
        if self.overrun:
            report |= {"overrun": self.overrun, "exit_code": None}
        return Outcome(stdout=bytes(self.received["stdout"]), stderr=bytes(self.received["stderr"]), **report)


def _listen(programs: Sequence[_Program], limits: Limits) -> None:
    """Collect output until the first program has ended, or one has exceeded a limit."""
    deadline = time.monotonic() + limits.wall_s + (0.0 if programs[0].is_contained else GRACE_S)
    with selectors.DefaultSelector() as selector:
        for program in programs:
            for name, stream in program.streams().items():
                selector.register(stream, selectors.EVENT_READ, (program, name))
        first = set(programs[0].streams())
        while first:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                programs[0].overrun = "wall"
                return
            for key, _ in ready:
                program, name = key.data
                if not _read(program, name, key.fd):
                    selector.unregister(key.fileobj)
                    if program is programs[0]:
                        first.discard(name)
                elif program.overrun:
                    return


def _read(program: _Program, name: str, fd: int) -> bool:
    """Read the available output, keep it up to the limit, and return True if more may come."""
    piece, kept = os.read(fd, 65536), program.received[name]
    kept += piece[: program.limits.output_bytes - len(kept)] if name != "report" else piece
    if name != "report" and piece and len(kept) >= program.limits.output_bytes:
        program.overrun = "output"
    return bool(piece)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
