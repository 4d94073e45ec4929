"""Supervise a program: set up its isolation, run it, kill all its processes, and report.

    supervisor ── keeper ── init, process 1 of its namespace ── program
    supervisor ── init ── program                                          without namespaces

When the init ends, the kernel kills everything in its namespace, regardless of groups, sessions and signal handlers.
When r3agent ends, its pipe closes; when the supervisor ends, the kernel kills the processes that depend on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from errno import EAGAIN, EINTR, ENOMEM, ENOSPC, EUSERS
from types import ModuleType
from typing import Any, NoReturn

from . import kernel, landlock, mounts, seccomp

INSIDE_ID = 1000
"""User and group of the program, as seen inside."""
NOBODY = 65534
"""User of the program if the supervisor is root, so that limits apply to it."""
PASSING = {EAGAIN, EINTR, ENOMEM, ENOSPC, EUSERS}
"""Errors of a temporary shortage, not of a missing feature."""
N_OWN = 2
"""Number of the supervisor's processes that the kernel may count with the program's."""
MIB = 1 << 20
MAX_FDS = 1 << 20


def main() -> None:
    """Supervise one program; the command line has a JSON object of descriptors, layers and limits."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, "subreaper")
    with open(spec["program_fd"], "rb") as file:
        program = file.read()
    reports, tell = os.pipe()
    own, child = os.pipe(), os.fork()
    if child == 0:
        _report_failure(tell)
        os.close(spec["life_fd"])
        os.close(spec["report_fd"])
        os.setpgid(0, 0)
        _hold(spec, program, go=own[0], tell=tell)
    os.close(tell)
    with contextlib.suppress(OSError):  # the child does it too, whichever is first
        os.setpgid(child, child)
    report = _supervise(spec, child, go=own[1], reports=reports)
    os.write(spec["report_fd"], json.dumps(report).encode())


def _supervise(spec: dict[str, Any], child: int, *, go: int, reports: int) -> dict[str, Any]:
    began = time.monotonic()
    received = b""
    report: dict[str, Any] = {}
    while not report:
        left = began + spec["wall_s"] - time.monotonic()
        ready, _, _ = select.select([reports, spec["life_fd"]], [], [], max(0.0, left))
        if reports in ready:
            piece = os.read(reports, 65536)
            received += piece
            *lines, received = received.split(b"\n")
            for message in map(json.loads, lines):
                if message == "namespaces":
                    _write_id_maps(child, go)
                else:
                    report = message
            if not piece:
                report = report or {"broken": "it ended without a word"}
        elif ready or left <= 0:
            report = {"overrun": "wall"}
    _end(child)
    return report | {"wall_s": time.monotonic() - began}


def _end(child: int) -> None:
    """Kill and reap all processes; without namespaces, none can have left the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _write_id_maps(child: int, go: int) -> None:
    """Write the id maps from outside, because only there can root map the program to another user."""
    answer = b"ok"
    try:
        if os.geteuid() == 0 and _is_mapped(NOBODY):
            maps = f"0 0 1\n{INSIDE_ID} {NOBODY} 1\n"
            uid_map, gid_map = maps, maps
        else:
            _write(f"/proc/{child}/setgroups", "deny")
            uid_map, gid_map = f"{INSIDE_ID} {os.geteuid()} 1\n", f"{INSIDE_ID} {os.getegid()} 1\n"
        _write(f"/proc/{child}/uid_map", uid_map)
        _write(f"/proc/{child}/gid_map", gid_map)
    except OSError as error:
        answer = str(error).encode()
    os.write(go, answer)


def _is_mapped(user: int) -> bool:
    with open("/proc/self/uid_map") as file:
        ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    return any(first <= user < first + count for first, count in ranges)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _hold(spec: dict[str, Any], program: bytes, *, go: int, tell: int) -> NoReturn:
    """Run as the keeper: create the namespaces, and wait for the init in them."""
    if "namespaces" in spec["layers"]:
        with _layer("namespaces"):
            with open("/proc/sys/user/max_user_namespaces") as file:
                if int(file.read()) == 0:  # otherwise ENOSPC, as when there are too many at the moment
                    raise OSError("user.max_user_namespaces = 0")
            kernel.unshare(
                kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
                | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
            )  # fmt: skip
            _send(tell, "namespaces")
            if (answer := os.read(go, 4096)) != b"ok":
                raise OSError(f"user id map: {answer.decode()}")
        _die_with_parent()
        init = os.fork()
        if init:
            os.close(tell)
            os.waitpid(init, 0)
            os._exit(0)
    _die_with_parent()
    with _layer("namespaces"):
        paths = mounts.readable(sys.base_prefix, spec["shown"])
        if "namespaces" in spec["layers"]:
            mounts.enter_root(paths, disk_mb=spec["disk_mb"])
    _keep(spec, program, paths, tell)


def _keep(spec: dict[str, Any], program: bytes, paths: list[str], tell: int) -> NoReturn:
    """Run as the init: reap orphans until the program itself has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # from inside; SIGKILL from inside does not reach an init
    child = os.fork()
    if child == 0:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        folders = _restrict(spec, paths)
        os.close(tell)
        _run(program, folders=folders)
    ended, status, used = os.wait4(-1, 0)
    while ended != child:
        ended, status, used = os.wait4(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    cpu_s = used.ru_utime + used.ru_stime
    report: dict[str, Any] = {"exit_code": code, "cpu_s": cpu_s}
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_s >= spec["cpu_s"]):
        report["overrun"] = "cpu"
    _send(tell, report)
    os._exit(0)


def _restrict(spec: dict[str, Any], paths: list[str]) -> list[str]:
    """Restrict the program in its own process, irrevocably, and return the directories with its packages."""
    layers, scratch = spec["layers"], spec["scratch"]
    alone = "namespaces" not in layers
    if alone:
        _die_with_parent()
        os.chdir(scratch)
        folders = _linked(spec["shown"], scratch)
    else:
        folders = [*dict.fromkeys(map(os.path.dirname, spec["shown"]))]
        scratch = mounts.SCRATCH
        if os.geteuid() == 0:
            os.setgroups([])
        os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    os.environ.clear()
    os.environ.update(HOME=scratch, TMPDIR=scratch, PATH="/usr/bin:/bin", LANG="C.UTF-8")
    if "landlock" in layers:
        with _layer("landlock"):
            landlock.restrict(
                readable=[*paths, "/dev/urandom"],
                listable=[] if alone else folders,
                writable=[scratch, "/dev/null", "/dev/zero"],
            )
    limits = {
        resource.RLIMIT_CPU: spec["cpu_s"],
        resource.RLIMIT_AS: spec["memory_mb"] * MIB,
        resource.RLIMIT_FSIZE: spec["disk_mb"] * MIB,
        resource.RLIMIT_NOFILE: spec["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if not alone:  # if alone, it cannot create processes, and the limit would count all of the user's
        limits[resource.RLIMIT_NPROC] = spec["processes"] + N_OWN
    for name, limit in limits.items():
        # SIGKILL comes a second later, so that SIGXCPU, which a program can ignore, identifies the cause.
        resource.setrlimit(name, (limit, limit + (name == resource.RLIMIT_CPU)))
    if "seccomp" in layers:
        with _layer("seccomp"):
            seccomp.forbid(alone=alone)
    return folders


def _linked(shown: list[str], scratch: str) -> list[str]:
    """Link to the packages from a directory, because those beside them, which cannot be read, must not be found."""
    folder = os.path.join(scratch, ".packages")
    if shown:
        os.mkdir(folder)
    for path in shown:
        os.symlink(path, os.path.join(folder, os.path.basename(path)))
    return [folder] if shown else []


def _run(program: bytes, *, folders: list[str]) -> NoReturn:
    """Run the program as a script, but without waiting for its remaining threads."""
    _report_failure(None)
    os.closerange(3, MAX_FDS)
    sys.argv[:] = [""]
    sys.path[-1:] = folders
    module = sys.modules["__main__"] = ModuleType("__main__")
    code = 0
    try:
        exec(compile(program, "<program>", "exec"), vars(module))
    except SystemExit as leaving:
        if isinstance(leaving.code, int) or leaving.code is None:
            code = leaving.code or 0
        else:
            print(leaving.code, file=sys.stderr)
            code = 1
    except BaseException as error:
        import traceback  # imported here: most programs do not need it

        trace = error.__traceback__
        traceback.print_exception(type(error), error, trace and trace.tb_next)
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _die_with_parent() -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL, "parent death signal")


@contextmanager
def _layer(name: str) -> Generator[None, None, None]:
    """Mark errors in the block as failures of this layer."""
    try:
        yield
    except OSError as error:
        error.layer = name  # type: ignore[attr-defined]
        raise


def _report_failure(tell: int | None) -> None:
    """Report a failure of this process, and exit at once without cleanup."""

    def hook(kind: type[BaseException], error: BaseException, at: object) -> NoReturn:
        if tell is not None:
            layer = getattr(error, "layer", None)
            passing = not isinstance(error, OSError) or error.errno in PASSING
            _send(tell, {"missing": layer, "why": str(error)} if layer and not passing else {"broken": repr(error)})
        os._exit(1)

    sys.excepthook = hook


def _send(tell: int, what: object) -> None:
    os.write(tell, json.dumps(what).encode() + b"\n")
