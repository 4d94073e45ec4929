"""Cores and quotas of containers, read from files as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3agent._util.cores import allowed_cpus, cpu_quota, physical_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_allowed_cpus_are_some_of_this_machine() -> None:
    assert allowed_cpus()


def test_physical_cores_share_hyperthreads(tmp_path: Path) -> None:
    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}\n"
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", siblings)
    assert physical_cores(set(range(8)), tmp_path) == 4
    assert physical_cores({1, 5}, tmp_path) == 1
    assert physical_cores({0, 1, 20, 21}, tmp_path) == 4  # of the last two nothing is known


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3.0),
        ("0::/docker/1f2e\n", {"cpu.max": "150000 100000\n"}, 1.5),  # the container sees its own group as the root
        ("0::/../x\n", {"cpu.max": "broken\n"}, None),
        ("4:cpuacct,cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("4:memory:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (None, {"cpu.max": "200000 100000\n"}, None),
    ],
)
def test_cpu_quota_of_control_groups(
    tmp_path: Path, groups: str | None, files: dict[str, str], quota: float | None
) -> None:
    if groups is not None:
        write(tmp_path / "cgroup", groups)
    for name, text in files.items():
        write(tmp_path / "fs" / name, text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "fs") == quota
