"""Refuse system calls that a program under test does not need, with EPERM.

Forbidden are sockets except stream pairs, other programs, tracing, namespaces, mounts, limits of other processes, and
memory that the limits do not count. Without namespaces, a process is also alone: it cannot create a process, leave its
process group, signal anything, change a file's mode, owner or times, which Landlock does not control, or truncate a
file by name, which Landlock on older kernels does not control.
"""

from __future__ import annotations

import ctypes
import struct
from errno import ENOSYS, EPERM

from . import kernel

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "execve": (59, 221),
    "execveat": (322, 281),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
}
"""Numbers on x86_64 and on aarch64 of the calls that are always forbidden."""

ALONE: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
}
"""Calls that are forbidden without namespaces."""

CLONE, CLONE3, PRCTL, PRLIMIT = (56, 220), (435, 435), (157, 167), (302, 261)
SOCKETPAIR, FCNTL, IOCTL = (53, 199), (72, 25), (16, 29)
AF_UNIX, SOCK_STREAM, SOCK_TYPE = 1, 1, 0xF
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
WHOM_TO_SIGNAL = {FCNTL: (8, 10, 15), IOCTL: (0x8901, 0x8902)}
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP: they choose which process a descriptor signals."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCH, FIRST, SECOND = 0, 4, 16, 24
SECCOMP, MODE_FILTER = 22, 2

NEW_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWTIME
)  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def forbid(*, alone: bool) -> None:
    """Forbid calls to this process and its children permanently; needs `no_new_privs`.

    Raises:
        OSError: the kernel has no seccomp filters, or this machine type is unknown.
    """
    if kernel.MACHINE not in AUDIT_ARCH:
        raise OSError(f"seccomp: the system calls of {kernel.MACHINE} are not known here")
    code = _filter(kernel.MACHINE, alone=alone)
    program = _Program(len(code) // 8, code)
    result = kernel.LIBC.prctl(SECCOMP, ctypes.c_ulong(MODE_FILTER), ctypes.byref(program))
    kernel.checked(result, "seccomp filter")


def _filter(machine: str, *, alone: bool) -> bytes:
    """Return the filter as BPF code; a jump has the numbers of instructions to skip if true and if false."""
    column = 0 if machine == "x86_64" else 1
    lines = [_line(LOAD, ARCH), _line(EQUAL, AUDIT_ARCH[machine], 1, 0), _line(RETURN, KILL), _line(LOAD, NUMBER)]
    if machine == "x86_64":
        lines += [_line(AT_LEAST, X32, 0, 1), _line(RETURN, KILL)]
    for numbers in {**NUMBERS, **(ALONE if alone else {})}.values():
        if (number := numbers[column]) is not None:
            lines += [_line(EQUAL, number, 0, 1), _line(RETURN, ERRNO | EPERM)]
    # Its flags are in memory, which a filter cannot read; the C library falls back to `clone`.
    lines += [_line(EQUAL, CLONE3[column], 0, 1), _line(RETURN, ERRNO | ENOSYS)]
    for call, checks in _checks(alone=alone).items():
        checks = [*checks, _line(RETURN, ALLOW)]
        lines += [_line(EQUAL, call[column], 0, len(checks)), *checks]
    return b"".join([*lines, _line(RETURN, ALLOW)])


def _checks(*, alone: bool) -> dict[tuple[int, int], list[bytes]]:
    """Return checks of calls by their arguments."""
    refuse = _line(RETURN, ERRNO | EPERM)
    checks = {
        # Only its own: its keeper may have the same user.
        PRLIMIT: [_line(LOAD, FIRST), _line(EQUAL, 0, 1, 0), refuse],
        # No datagrams: they can be sent to another process's socket.
        SOCKETPAIR: [
            *(_line(LOAD, FIRST), _line(EQUAL, AF_UNIX, 1, 0), refuse),
            *(_line(LOAD, SECOND), _line(AND, SOCK_TYPE), _line(EQUAL, SOCK_STREAM, 1, 0), refuse),
        ],
        CLONE: [_line(LOAD, FIRST), _line(ANY_BIT, NEW_NAMESPACES, 0, 1), refuse],
    }
    if alone:  # threads only, and the process must end with its supervisor
        checks[CLONE] = [_line(LOAD, FIRST), _line(ANY_BIT, kernel.CLONE_THREAD, 1, 0), refuse]
        checks[PRCTL] = [_line(LOAD, FIRST), _line(EQUAL, kernel.PR_SET_PDEATHSIG, 0, 1), refuse]
        for call, commands in WHOM_TO_SIGNAL.items():
            refused = [line for command in commands for line in (_line(EQUAL, command, 0, 1), refuse)]
            checks[call] = [_line(LOAD, SECOND), *refused]
    return checks


def _line(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)
