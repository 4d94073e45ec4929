"""System calls that Python does not expose."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_THREAD = 0x02000000, 0x00000080, 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 38, 36

MACHINE = os.uname().machine
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(MACHINE)
MOUNT_SETATTR = 442


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def checked(result: int, call: str) -> int:
    """Return the result of a call to the C library.

    Raises:
        OSError: the call failed; the message names it.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(number: int | None, *arguments: object, call: str) -> int:
    if number is None:
        raise OSError(f"{call}: its number on {MACHINE} is not known here")
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(LIBC.syscall(ctypes.c_long(number), *longs), call)


def prctl(option: int, value: int, call: str) -> None:
    checked(LIBC.prctl(option, *(ctypes.c_ulong(v) for v in (value, 0, 0, 0))), call)


def unshare(flags: int) -> None:
    checked(LIBC.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text and text.encode() for text in (source, target, kind, options)]
    result = LIBC.mount(*texts[:3], ctypes.c_ulong(flags), texts[3])
    checked(result, f"mount {source or kind} on {target}")


def make_read_only(path: str) -> None:
    """Make the mount at a path and all mounts below it read-only."""
    attributes = _MountAttr(set=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    size = ctypes.sizeof(attributes)
    arguments = (AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attributes), size)
    syscall(MOUNT_SETATTR, *arguments, call=f"mount_setattr {path}")


def pivot_to(root: str) -> None:
    """Make `root` the root directory, and detach the old one."""
    os.chdir(root)
    syscall(PIVOT_ROOT, b".", b".", call="pivot_root")
    checked(LIBC.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def drop_capabilities() -> None:
    header, none = _CapHeader(version=0x20080522, pid=0), (ctypes.c_uint32 * 6)()
    checked(LIBC.capset(ctypes.byref(header), ctypes.byref(none)), "capset")
