"""What gets out of the sandbox? Looked for from outside: processes, files, connections, bytes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from r3agent.sandbox import LAYERS, Layer, Limits, Outcome, run_python
from tests.held import SANDBOX_ONLY, WITHOUT_NAMESPACES, all_layers, needs, without_namespaces


def in_each(*sets: tuple[Layer, ...]) -> Any:
    return pytest.mark.parametrize("layers", [pytest.param(s, marks=needs(s), id="+".join(s)) for s in sets])


SETS: list[tuple[Layer, ...]] = [LAYERS, WITHOUT_NAMESPACES]
each_set = in_each(*SETS)

LIMITS = Limits(wall_s=20, cpu_s=10, memory_mb=256, processes=8, disk_mb=4)
SHORT = Limits(wall_s=1.5, cpu_s=10, memory_mb=256, processes=8, disk_mb=4)


def run(source: str, layers: tuple[Layer, ...] = LAYERS, limits: Limits = LIMITS) -> Outcome:
    """Run it, and see that none of its processes is left: each would have the pipe of its output open or be ours."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    outcome = run_python(source, layers=layers, limits=limits)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    return outcome


def said(outcome: Outcome) -> str:
    assert outcome.exit_code == 0, outcome
    return outcome.stdout.decode().strip()


def is_running(name: str) -> bool:
    """Whether a process called so is on this machine, whoever's child it has become."""
    names: set[str] = set()
    for file in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended since
            names.add(file.read_text().strip())
    return name in names


NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}.encode(), 0, 0, 0)\n"
"""Gives a process a name by which it is found from outside; its children have it too."""


# ---- processes ----


@all_layers
def test_the_limit_on_processes_is_in_force_and_a_fork_bomb_ends_at_it() -> None:
    n_tries = 64  # bounded, so that this test is safe where the limit were not in force
    source = f"""
import os, time
made = 0
for _ in range({n_tries}):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except BlockingIOError:
        break
print(made)
"""
    made = int(said(run(source)))
    assert 1 <= made <= LIMITS.processes + 2

    bomb = (
        NAMED.format(name="r3bomb")
        + "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    )
    assert run(bomb, limits=SHORT).overrun == "wall"
    assert not is_running("r3bomb")


@without_namespaces
def test_without_namespaces_no_process_can_be_made() -> None:
    assert run("import os; os.fork()", WITHOUT_NAMESPACES).stderr.endswith(b"Operation not permitted\n")
    assert (
        said(
            run("import threading as t; x = t.Thread(target=print, args=(7,)); x.start(); x.join()", WITHOUT_NAMESPACES)
        )
        == "7"
    )


@all_layers
@pytest.mark.parametrize("ending", ["", "time.sleep(60)"], ids=["that leaves them behind", "over the wall limit"])
def test_daemons_of_a_double_fork_die_with_the_program(ending: str) -> None:
    source = (
        NAMED.format(name="r3daemon")
        + f"""
import os, signal, time
for _ in range(2):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        if os.fork() == 0:
            os.setpgid(0, 0)
            os.write(writing, b"up")
            for fd in range(3):
                os.close(fd)
            time.sleep(60)
        os._exit(0)
    os.read(reading, 2)
print("up")
{ending}
"""
    )
    outcome = run(source, limits=SHORT if ending else LIMITS)
    if not ending:
        assert said(outcome) == "up"
    assert outcome.overrun == ("wall" if ending else None)
    assert not is_running("r3daemon")


@each_set
def test_no_handler_and_no_mask_keeps_a_program_alive(layers: tuple[Layer, ...]) -> None:
    source = (
        NAMED.format(name="r3deaf")
        + """
import signal, time
for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    time.sleep(1)
"""
    )
    assert run(source, layers, SHORT).overrun == "wall"
    assert not is_running("r3deaf")


@each_set
def test_it_cannot_signal_or_see_processes_outside(layers: tuple[Layer, ...]) -> None:
    source = f"""
import os
for pid in ({os.getpid()}, os.getppid(), 1, -1):
    try:
        os.kill(pid, 0 if pid != -1 else 18)
        print("reached", pid)
    except OSError:
        pass
for path in ("/proc", "/proc/{os.getpid()}/environ", "/proc/self/environ"):
    try:
        print(os.listdir(path) if path == "/proc" else open(path).read())
    except OSError:
        pass
"""
    # In its own namespace process 1 and the parent are its keeper's, which no signal from inside reaches.
    allowed = {"reached 1", "reached -1"} if "namespaces" in layers else set()
    assert set(said(run(source, layers)).splitlines()) <= allowed


@all_layers
def test_killing_its_keeper_does_nothing() -> None:
    source = (
        "import os, signal\nfor n in (9, 19, 2, 15):\n    try: os.kill(1, n)\n    except OSError: pass\nprint('here')"
    )
    assert said(run(source)) == "here"


@all_layers
def test_the_program_dies_when_who_started_it_is_killed() -> None:
    program = NAMED.format(name="r3orphan") + "import time; time.sleep(200)"
    starter = f"from r3agent.sandbox import run_python, Limits; run_python({program!r}, limits=Limits(wall_s=200))"
    deadline = time.monotonic() + 90
    with psutil.Popen([sys.executable, "-c", SANDBOX_ONLY + starter]) as process:
        try:
            while not is_running("r3orphan"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
    while is_running("r3orphan"):
        assert time.monotonic() < deadline + 10
        time.sleep(0.05)


# ---- limits ----


@each_set
def test_an_endless_loop_ends_at_the_limit_of_cpu(layers: tuple[Layer, ...]) -> None:
    outcome = run("while True: pass", layers, Limits(wall_s=60, cpu_s=1))
    assert (outcome.overrun, outcome.exit_code) == ("cpu", -signal.SIGXCPU)


@each_set
def test_sleeping_ends_at_the_wall_limit(layers: tuple[Layer, ...]) -> None:
    outcome = run("import time; time.sleep(60)", layers, Limits(wall_s=0.5))
    assert (outcome.overrun, outcome.exit_code) == ("wall", None)


@each_set
def test_memory_is_limited(layers: tuple[Layer, ...]) -> None:
    assert run("x = bytearray(2 ** 30)", layers).stderr.endswith(b"MemoryError\n")
    assert said(run("x = bytearray(2 ** 26); print(len(x))", layers)) == str(2**26)


@each_set
@pytest.mark.parametrize("fd", [1, 2])
def test_output_is_cut_and_its_flood_ended(layers: tuple[Layer, ...], fd: int) -> None:
    limits = Limits(wall_s=30, output_bytes=100_000)
    outcome = run(f"import os\nwhile True: os.write({fd}, b'x' * 65536)", layers, limits)
    assert outcome.overrun == "output"
    assert len((outcome.stdout, outcome.stderr)[fd - 1]) == 100_000


@each_set
def test_a_file_cannot_grow_over_the_limit(layers: tuple[Layer, ...]) -> None:
    source = "import os\nf = open('big', 'wb', buffering=0)\nfor _ in range(9): f.write(b'x' * 2 ** 20)"
    assert b"OSError: [Errno" in run(source, layers).stderr


@all_layers
def test_all_files_together_cannot_either() -> None:
    source = "for n in range(9): open(f'{n}', 'wb').write(b'x' * 2 ** 20)"
    assert run(source).stderr.endswith(b"No space left on device\n")
    assert b"Errno 28" in run("for n in range(9999): open(f'{n}', 'wb').close()").stderr


@each_set
def test_no_limit_can_be_raised_again(layers: tuple[Layer, ...]) -> None:
    source = """
import resource as r
for name in ("CPU", "AS", "FSIZE", "NOFILE", "NPROC", "CORE"):
    kind = getattr(r, f"RLIMIT_{name}")
    try:
        soft, hard = r.getrlimit(kind)
        r.setrlimit(kind, (hard + 1, hard + 1))
        print(name)
    except (OSError, ValueError):
        pass
"""
    assert said(run(source, layers)) == ""


@each_set
def test_its_keepers_are_not_limited_signalled_traced_or_written_to(layers: tuple[Layer, ...]) -> None:
    source = """
import ctypes, fcntl, os, resource
def attempt(what):
    try:
        print(what())
    except OSError:
        pass
libc, pid = ctypes.CDLL(None, use_errno=True), os.getppid()
attempt(lambda: resource.prlimit(pid, resource.RLIMIT_AS, (0, 0)))
attempt(lambda: open(f"/proc/{pid}/mem", "wb"))
attempt(lambda: open("/proc/self/mem", "wb"))
attempt(lambda: open("/dev/shm/out", "w"))
if libc.ptrace(16, pid, 0, 0) == 0:
    print("traced")
"""
    own = """
reading, writing = os.pipe()
for what in (lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, pid), lambda: fcntl.fcntl(reading, 10, 9),
             lambda: fcntl.fcntl(reading, 15, bytes(8)), lambda: fcntl.ioctl(reading, 0x8901, bytes(4))):
    attempt(what)
fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_NONBLOCK)
"""
    # In its own namespace it can name nobody whom a descriptor would signal but its keeper, which is deaf.
    assert said(run(source + ("" if "namespaces" in layers else own), layers)) == ""


# ---- files and environment ----


@each_set
def test_environment_and_descriptors_are_empty(layers: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3AGENT_SECRET", "hush")
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        source = """
import os
print(sorted(os.environ))
def is_open(fd):
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False
print([fd for fd in range(4096) if is_open(fd)])
"""
        assert said(run(source, layers)).splitlines() == ["['HOME', 'LANG', 'PATH', 'TMPDIR']", "[0, 1, 2]"]


@each_set
def test_files_of_others_are_neither_read_nor_written(layers: tuple[Layer, ...], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    os.chmod(tmp_path, 0o777)
    before = secret.stat()
    source = f"""
import os
def attempt(what):
    try:
        print(what())
    except OSError:
        pass
secret, folder = {str(secret)!r}, {str(tmp_path)!r}
attempt(lambda: open(secret).read())
attempt(lambda: open(secret, "a").write("x"))
attempt(lambda: open(folder + "/new", "w"))
attempt(lambda: open("/etc/passwd").read())
attempt(lambda: open("/etc/new", "w"))
attempt(lambda: open(os.__file__, "a"))
attempt(lambda: os.listdir(folder))
attempt(lambda: os.chmod(secret, 0o666) or "chmod")
attempt(lambda: os.utime(secret, (1, 1)) or "utime")
attempt(lambda: os.truncate(secret, 0) or "truncate")
attempt(lambda: os.unlink(secret) or "unlink")
attempt(lambda: os.rename(secret, "mine") or "rename")
attempt(lambda: os.link(secret, "mine") or "link")
os.symlink(secret, "way")
attempt(lambda: open("way").read())
attempt(lambda: os.chroot(".") or "chroot")
attempt(lambda: os.listdir("/root"))
"""
    assert said(run(source, layers)) == ""
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, secret.read_text()) == (before.st_mode, before.st_mtime_ns, "hush")
    assert os.listdir(tmp_path) == ["secret"]


@each_set
def test_its_own_directory_can_be_written_and_is_gone_afterwards(layers: tuple[Layer, ...]) -> None:
    source = "import os, tempfile\nname = tempfile.mkdtemp('r3mine')\nopen(name + '/a', 'w').write('x')\nprint(name)"
    assert not os.path.exists(said(run(source, layers)))


@each_set
def test_a_directory_that_is_deep_and_closed_is_gone_afterwards(layers: tuple[Layer, ...]) -> None:
    source = """
import os
os.mkdir("shut", 0)
os.symlink("/", "way")
for _ in range(1000):
    os.mkdir("deep")
    os.chdir("deep")
open("file", "w").close()
print("down")
"""
    before = set(Path(tempfile.gettempdir()).glob("r3agent-sandbox-*"))
    assert said(run(source, layers)) == "down"
    assert set(Path(tempfile.gettempdir()).glob("r3agent-sandbox-*")) <= before
    assert Path(__file__).exists()


@each_set
def test_no_other_program_is_started(layers: tuple[Layer, ...]) -> None:
    source = """
import os
open("own", "w").write("#!/bin/sh\\necho started\\n")
os.open("own", os.O_RDONLY)
for path in ("/bin/sh", "/bin/echo", "/usr/bin/env", "./own", "/lib64/ld-linux-x86-64.so.2"):
    try:
        os.execv(path, [path, "-c", "echo started"])
    except OSError:
        pass
print("none")
"""
    assert said(run(source, layers)) == "none"


# ---- network ----

CONNECT = """
import errno, socket
for address in ("127.0.0.1", "localhost"):
    try:
        socket.create_connection((address, {port}), timeout=2).sendall(b"out")
        print("connected")
    except OSError as error:
        print("no")
"""


@in_each(*SETS, ("namespaces",), ("namespaces", "landlock"))
def test_no_connection_arrives(layers: tuple[Layer, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.settimeout(10)
            server.accept()[0].close()  # so one from inside would be seen as well
        assert said(run(CONNECT.format(port=port), layers)).splitlines() == ["no", "no"]
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


@in_each(*SETS, ("namespaces",))
def test_unix_sockets_of_others_are_out_of_reach(layers: tuple[Layer, ...], tmp_path: Path) -> None:
    abstract = f"\0r3agent-{os.getpid()}"
    with ExitStack() as stack:
        for address in (str(tmp_path / "socket"), abstract):
            for kind, name in ((socket.SOCK_STREAM, address), (socket.SOCK_DGRAM, f"{address}-datagrams")):
                server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
                server.bind(name)
                if kind == socket.SOCK_STREAM:
                    server.listen()
        source = f"""
import socket
def attempt(what):
    try:
        print(what())
    except OSError:
        pass
def half(kind):
    return socket.socketpair(socket.AF_UNIX, kind)[0]
for address in ({str(tmp_path / "socket")!r}, {abstract!r}):
    attempt(lambda: socket.socket(socket.AF_UNIX).connect(address))
    attempt(lambda: half(socket.SOCK_STREAM).connect(address))
    attempt(lambda: half(socket.SOCK_DGRAM).sendto(b"out", address + "-datagrams"))
    attempt(lambda: half(socket.SOCK_DGRAM).connect(address + "-datagrams"))
    attempt(lambda: half(socket.SOCK_RAW).sendto(b"out", address + "-datagrams"))
"""
        assert said(run(source, layers)) == ""
        assert said(run("import socket\na, b = socket.socketpair()\na.send(b'7')\nprint(b.recv(1))", layers)) == "b'7'"


@in_each(LAYERS, ("namespaces", "landlock"), ("namespaces",))
def test_no_privilege_comes_back(layers: tuple[Layer, ...]) -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print([i for i in (os.getuid(), os.geteuid(), os.getgid()) if i == 0])
for what in (lambda: os.setuid(0), lambda: os.setgroups([0])):
    try:
        what()
        print("privileged")
    except OSError:
        pass
print(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.umount2(b"/tmp", 2), libc.sethostname(b"x", 1))
"""
    assert said(run(source, layers)).splitlines() == ["[]", "-1 -1 -1"]


@each_set
def test_forbidden_system_calls_fail(layers: tuple[Layer, ...]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    calls = {
        "io_uring_setup": 425,
        "bpf": 321,
        "ptrace": 101,
        "unshare": 272,
        "memfd_create": 319,
        "clone3": 435,
        "shmget": 29,
        "prlimit64": 302,
        "userfaultfd": 323,
        "keyctl": 250,
        "connect": 42,
        "bind": 49,
        "process_vm_writev": 311,
        "pidfd_getfd": 438,
        "open_by_handle_at": 304,
        "clock_settime": 227,
    }
    if "namespaces" not in layers:
        calls |= {
            "fork": 57,
            "pidfd_open": 434,
            "tgkill": 234,
            "rt_sigqueueinfo": 129,
            "truncate": 76,
            "fchmodat2": 452,
        }
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls!r}.items():
    print(libc.syscall(number, 0x10000000, 0, 0, 0, 0, 0), ctypes.get_errno())
print(libc.syscall(56, 0x10000011, 0, 0, 0, 0), ctypes.get_errno())
"""
    answers = said(run(source, layers)).splitlines()
    assert answers == ["-1 38" if name == "clone3" else "-1 1" for name in calls] + ["-1 1"]
