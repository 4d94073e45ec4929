"""Cores that this process may use: its affinity, and the limit of its container, which the affinity does not show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def allowed_cpus() -> set[int]:
    """Return the numbers of the processors in the affinity of this process."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], topology: Path = TOPOLOGY) -> int:
    """Count the cores of processors; hyperthreads share one. Without a topology, each processor is a core."""
    cores: set[str] = set()
    for cpu in cpus:
        try:
            cores.add((topology / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def cpu_quota(groups: Path = GROUPS, mount: Path = MOUNT) -> float | None:
    """Return the cores' worth of time that control groups allow, as `docker --cpus` sets it; `None` without a limit."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += (q for root in (mount, mount / "unified") for d in _parents(root, path) if (q := _quota(d)))
        elif "cpu" in controllers.split(","):
            quotas += (q for d in _parents(mount / "cpu", path) if (q := _quota_v1(d)))
    return min(quotas, default=None)


def _parents(root: Path, path: str) -> Iterator[Path]:
    """Yield a group's directory and those above it; a container may see its own group as the root."""
    group = PurePosixPath(path.lstrip("/"))
    for part in (group, *group.parents):
        yield root / part


def _quota(directory: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _quota_v1(directory: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    return None
