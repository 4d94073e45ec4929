"""Private root directory: the files that Python needs, read-only, and one empty writable directory in memory."""

from __future__ import annotations

import os

from . import kernel

SCRATCH = "/tmp"
"""The only writable directory."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")

_STAGE = "/proc"
"""Directory in which the new root is assembled: it exists everywhere, and nothing inside needs it."""


def readable(base_prefix: str, shown: list[str]) -> list[str]:
    """Return `shown`, and the paths of the standard library and of shared libraries that its modules may need."""
    own = [os.path.join(os.path.realpath(base_prefix), name) for name in ("lib", "lib64")]
    paths = [path for path in dict.fromkeys([*own, *SHARED_LIBRARIES, *shown]) if os.path.exists(path)]
    return [path for path in paths if not any(path.startswith(f"{above}/") for above in paths)]


def enter_root(paths: list[str], *, disk_mb: int) -> None:
    """Create and enter the root of a private mount namespace."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    scratch = _STAGE + SCRATCH
    os.makedirs(scratch, exist_ok=True)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", scratch, "tmpfs", flags, f"size={disk_mb}m,nr_inodes=4096,mode=1777")
    for path in [*paths, *DEVICES]:  # after the scratch directory: an interpreter may be inside it
        _bind(path, writable=path in DEVICES)
    kernel.pivot_to(_STAGE)
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, flags)
    os.chdir(SCRATCH)


def _bind(path: str, *, writable: bool) -> None:
    """Bind-mount a path at the same place in the new root."""
    target = _STAGE + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.path.realpath(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
    if not writable:
        kernel.make_read_only(target)
