"""Landlock: allow reading some files and writing some others, and executing none.

It needs no privilege and no namespace (Linux 5.13). On newer kernels it also forbids TCP, abstract Unix sockets and
signals to processes outside.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from .kernel import syscall

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE = 1 << 14
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
"""File system rights by ABI version; later versions have 16."""
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
TCP_BIND_CONNECT, ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fs", "net", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def restrict(*, readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
    """Restrict this process and its children permanently; needs `no_new_privs`.

    Raises:
        OSError: the kernel has no Landlock, or it is not enabled.
    """
    version = syscall(CREATE, None, 0, VERSION, call="Landlock")
    handled = RIGHTS.get(version, (1 << 16) - 1)
    ruleset = _Ruleset(fs=handled, net=TCP_BIND_CONNECT, scoped=ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    fd = syscall(CREATE, ctypes.byref(ruleset), size, 0, call="landlock_create_ruleset")
    for path in readable:
        _allow(fd, path, READ_FILE | READ_DIR)
    for path in listable:
        _allow(fd, path, READ_DIR)
    for path in writable:
        _allow(fd, path, handled & ~EXECUTE)
    syscall(RESTRICT, fd, 0, call="landlock_restrict_self")
    os.close(fd)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= OF_A_FILE
    rule = _PathBeneath(allowed=rights, fd=fd)
    syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0, call=f"landlock_add_rule {path}")
    os.close(fd)
