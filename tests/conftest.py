from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a hub
os.environ["OMP_NUM_THREADS"] = "1"  # models are tiny: threads would wait for each other, on cores that others need

settings.register_profile("r3agent", deadline=None)  # how long a busy machine takes says nothing of the code
settings.load_profile("r3agent")

_crashed_workers: list[str] = []


def pytest_collection_finish() -> None:
    """Freeze what is imported: each stage of a run, and each training, has a full garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object | None) -> None:
    """Remember a worker of pytest-xdist that crashed, which it may do after its last test."""
    if error:
        _crashed_workers.append(f"{node}: {error}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in which a worker crashed."""
    if _crashed_workers and exitstatus == pytest.ExitCode.OK:
        print(f"\ncrashed: {', '.join(_crashed_workers)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


SLOWEST = (
    "train/test_command_line.py",
    "train/test_sharded.py",
    "e2e/test_examples.py",
    "e2e/test_loop.py",
    "e2e/test_studio.py",
    "run/test_cluster.py",
    "e2e/test_agents.py",
    "serve/test_process.py",
    "e2e/test_service.py",
    "train/test_refusals.py",
)
"""Files that take longest: begun first, so that no worker is left with one at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    paths = [Path(__file__).parent / name for name in SLOWEST]
    assert not (gone := [str(path) for path in paths if not path.is_file()]), f"SLOWEST: {gone}"
    order = {path: index for index, path in enumerate(paths)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
