"""Connections that try to get out of the sandbox, and attempts to regain privileges."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from r3agent.verifiers.sandbox import LAYERS, Layer
from tests.verifiers.sandbox.hostile import ATTEMPT, SETS, each_set, in_each, run, said

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
def half(kind):
    return socket.socketpair(socket.AF_UNIX, kind)[0]
for address in ({str(tmp_path / "socket")!r}, {abstract!r}):
    attempt(lambda: socket.socket(socket.AF_UNIX).connect(address))
    attempt(lambda: half(socket.SOCK_STREAM).connect(address))
    attempt(lambda: half(socket.SOCK_DGRAM).sendto(b"out", address + "-datagrams"))
    attempt(lambda: half(socket.SOCK_DGRAM).connect(address + "-datagrams"))
    attempt(lambda: half(socket.SOCK_RAW).sendto(b"out", address + "-datagrams"))
"""
        assert said(run(ATTEMPT + source, layers)) == ""
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
