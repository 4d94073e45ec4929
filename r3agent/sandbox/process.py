"""Programs in the sandbox, seen from outside: started, listened to, ended and reported."""

from __future__ import annotations

import base64
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, Literal, TypeAlias

from r3agent.errors import ConfigError, VerifierError

Layer: TypeAlias = Literal["namespaces", "landlock", "seccomp"]
Overrun: TypeAlias = Literal["wall", "cpu", "output"]

LAYERS: tuple[Layer, ...] = ("namespaces", "landlock", "seccomp")
ENOUGH: tuple[frozenset[Layer], ...] = (frozenset({"namespaces"}), frozenset({"landlock", "seccomp"}))
"""Sets of layers of which one at least has to be there for a program to be held."""

GRACE_S = 5.0
"""How long a supervisor may take to end everything after a limit, before it is killed itself."""
CLOSING_S = 0.5
"""How long a container's command may take to end once its output has."""
MAX_ARGUMENT_BYTES = 120_000
"""Of one argument of a command; Linux takes 128 KiB."""

_BOOT = "import sys; sys.path.append(sys.argv.pop()); from inside.launch import main; main()"
_IN_CONTAINER = """
import resource as r
for name, limit in {limits}.items():
    limit = min([limit, *(x for x in r.getrlimit(getattr(r, name)) if x != r.RLIM_INFINITY)])
    r.setrlimit(getattr(r, name), (limit, limit))
del r
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    wall_s: float = 10.0
    """From start to end."""
    cpu_s: int = 10
    """Of each process."""
    memory_mb: int = 512
    """Address space of each process."""
    processes: int = 8
    """And threads, the first included."""
    disk_mb: int = 16
    """All that it writes; it lies in memory. Without namespaces: each file."""
    open_files: int = 64
    output_bytes: int = 1 << 20
    """Of its stdout and stderr, each."""

    def __post_init__(self) -> None:
        least = {"wall_s": 0.0, "cpu_s": 1, "memory_mb": 64, "processes": 1, "disk_mb": 1, "open_files": 8}
        for name, lowest in {**least, "output_bytes": 1}.items():
            value = getattr(self, name)
            if not (value > lowest or (value == lowest and lowest)):
                raise ConfigError(f"{name} = {value!r}: give the sandbox {lowest or 'more than 0'}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    exit_code: int | None = None
    """Minus the signal that ended it; `None` where a limit of wall time or output did."""
    overrun: Overrun | None = None
    """The limit that ended it; running out of memory is a `MemoryError` inside it."""
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_s: float = 0.0
    wall_s: float = 0.0


def run_python(
    source: str,
    *,
    stdin: bytes = b"",
    limits: Limits | None = None,
    layers: Sequence[Layer] = LAYERS,
    command: Sequence[str] = (),
) -> Outcome:
    """Run a program as `python -I -S` would, held by the sandbox, or by the container that `command` starts.

    Args:
        layers: what has to hold it; without one of them it is not run. Fewer than all are a decision to be held less.
        command: starts a Python with the options that are appended; see the package's docstring.

    Raises:
        ConfigError: this machine lacks a layer.
        VerifierError: the sandbox itself broke down.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        file = stack.enter_context(TemporaryFile())
        file.write(stdin)
        file.seek(0)
        program = stack.enter_context(
            _Program(source, stdin=file, stdout=subprocess.PIPE, limits=limits, layers=layers, command=command)
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
) -> tuple[Outcome, Outcome]:
    """Two programs at once, each in a sandbox of its own: the stdout of each is the stdin of the other.

    When the first has ended, the second is ended. Raises what `run_python` does.
    """
    limits = limits or Limits()
    with ExitStack() as stack:
        files = [stack.enter_context(end) for end in (*_pipe(), *_pipe())]
        to_first, from_second, to_second, from_first = files
        settings: dict[str, Any] = {"limits": limits, "layers": layers, "command": command}
        programs = [
            stack.enter_context(_Program(first, stdin=to_first, stdout=from_first, **settings)),
            stack.enter_context(_Program(second, stdin=to_second, stdout=from_second, **settings)),
        ]
        for file in files:  # each end is now held by one program alone, so it is closed when that ends
            file.close()
        _listen(programs, limits)
        return programs[0].outcome(), programs[1].outcome()


class _Program:
    """One program under way; left, it is ended with all that it started."""

    def __init__(
        self,
        source: str,
        *,
        stdin: IO[bytes],
        stdout: IO[bytes] | int,
        limits: Limits,
        layers: Sequence[Layer],
        command: Sequence[str],
    ) -> None:
        self.limits = limits
        self.heard: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self.overrun: Overrun | None = None
        self._began = time.monotonic()
        self.is_contained = bool(command)
        with ExitStack() as stack:
            if command:
                arguments, passed = [*command, *_in_container(source, limits)], []
                report = life = None
                environment = None
            else:
                _check(layers)
                file = stack.enter_context(TemporaryFile())
                file.write(source.encode("utf-8", "surrogatepass"))
                file.seek(0)
                life, self._life = _pipe()
                stack.callback(life.close)
                self._report, report = _pipe()
                stack.callback(report.close)
                self._scratch = TemporaryDirectory(prefix="r3agent-sandbox-")
                passed = [file.fileno(), life.fileno(), report.fileno()]
                keys = ("program_fd", "life_fd", "report_fd")
                spec = asdict(limits) | dict(zip(keys, passed, strict=True))
                spec |= {"layers": list(layers), "scratch": self._scratch.name}
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
            self._scratch.cleanup()

    def streams(self) -> dict[str, IO[bytes]]:
        report = {} if self.is_contained else {"report": self._report}
        found = {"stdout": self.process.stdout, "stderr": self.process.stderr, **report}
        return {name: stream for name, stream in found.items() if stream is not None}

    def end(self) -> None:
        """Its supervisor ends it, or the container's command does, asked politely; then whoever is left is killed."""
        if self.process.returncode is not None:
            return
        if not self.is_contained:
            self._life.close()
        elif self.overrun or not self._has_ended(CLOSING_S):
            os.killpg(self.process.pid, signal.SIGTERM)
        self._has_ended(GRACE_S)
        os.killpg(self.process.pid, signal.SIGKILL)  # it is not reaped yet, so the group is still its own
        self.process.wait()

    def _has_ended(self, within_s: float) -> bool:
        deadline, pause_s = time.monotonic() + within_s, 0.001
        while not os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(0.05, 2 * pause_s)
        return True

    def outcome(self) -> Outcome:
        self.end()
        if not self.is_contained:
            self.heard["report"] += self._report.read() or b""
        report: dict[str, Any] = {}
        if self.is_contained:
            report = {"exit_code": self.process.returncode, "wall_s": time.monotonic() - self._began}
        elif self.heard["report"]:
            report = json.loads(self.heard["report"])
        elif self.overrun is None:
            said = self.heard["stderr"][-500:].decode(errors="replace")
            raise VerifierError(f"the sandbox ended with {self.process.returncode} and no report: {said}")
        if "missing" in report:
            raise ConfigError(_lacking(report["missing"], report["why"]))
        if "broken" in report:
            raise VerifierError(f"the sandbox broke down: {report['broken']}")
        if self.overrun:
            report |= {"overrun": self.overrun, "exit_code": None}
        return Outcome(stdout=bytes(self.heard["stdout"]), stderr=bytes(self.heard["stderr"]), **report)


def _listen(programs: Sequence[_Program], limits: Limits) -> None:
    """Until the first program has ended, or one has gone over a limit."""
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
                if not _hear(program, name, key.fd):
                    selector.unregister(key.fileobj)
                    if program is programs[0]:
                        first.discard(name)
                elif program.overrun:
                    return


def _hear(program: _Program, name: str, fd: int) -> bool:
    """Whether there may be more. No more than the limit is kept, whatever is written."""
    piece, heard = os.read(fd, 65536), program.heard[name]
    heard += piece[: program.limits.output_bytes - len(heard)] if name != "report" else piece
    if name != "report" and piece and len(heard) >= program.limits.output_bytes:
        program.overrun = "output"
    return bool(piece)


def _check(layers: Sequence[Layer]) -> None:
    if sys.platform != "linux":
        raise ConfigError(_lacking("sandbox", f"it needs Linux, this is {sys.platform}"))
    if unknown := set(layers) - set(LAYERS):
        raise ConfigError(f"sandbox layers {sorted(unknown)} are unknown; there are {', '.join(LAYERS)}")
    if not any(enough <= set(layers) for enough in ENOUGH):
        raise ConfigError(f"sandbox layers {list(layers)} hold nothing; keep namespaces, or landlock and seccomp")


def _lacking(layer: str, why: str) -> str:
    rest = [name for name in LAYERS if name != layer]
    less = f", or go on with less: layers = {json.dumps(rest)}" if layer in LAYERS else ""
    return (
        f"this machine does not let the sandbox have its {layer}: {why}; allow it, run in a container with "
        f'command = ["docker", "run", "--rm", "-i", "--network", "none", "IMAGE", "python"]{less}'
    )


def _in_container(source: str, limits: Limits) -> list[str]:
    """Options of Python that run a program; they set the limits that a process sets on itself."""
    own = {
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_AS": limits.memory_mb << 20,
        "RLIMIT_FSIZE": limits.disk_mb << 20,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    parts = [_IN_CONTAINER.format(limits=own), source]
    packed = [base64.b64encode(zlib.compress(part.encode("utf-8", "surrogatepass"))).decode() for part in parts]
    code = "import base64,zlib\n" + "".join(
        f"exec(compile(zlib.decompress(base64.b64decode({text!r})),'<program>','exec'))\n" for text in packed
    )
    if len(code) > MAX_ARGUMENT_BYTES:
        raise VerifierError(
            f"a program of {len(code)} bytes, compressed: a container's command takes {MAX_ARGUMENT_BYTES}; "
            "have shorter tests, or use the sandbox without a command"
        )
    return ["-I", "-X", "utf8", "-c", code]


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
