"""Runs whose processes and servers are killed at random moments lose nothing, and store nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_sweep import sweep, write_tasks
from r3agent._util.lock import file_lock
from r3agent.errors import BusyError
from r3agent.run.stages import Run
from r3agent.testing import ScriptedEndpoint


@pytest.mark.parametrize("servers", [1, 2])
def test_killed_run_is_resumed_without_loss(servers: int, tmp_path: Path) -> None:
    counts = sweep(3, 30, folder=tmp_path, servers=servers, seed=servers)
    assert counts["kills"] >= 3
    assert counts["asked"] == counts["completed"] == counts["tasks"]
    assert (counts["duplicates"], counts["orphans"], counts["unreadable"]) == (0, 0, 0)


def test_collect_is_refused_while_another_process_collects(tmp_path: Path) -> None:
    write_tasks(tmp_path, 4)
    with ScriptedEndpoint("right") as endpoint:
        settings = {"policy.base_url": endpoint.url, "policy.model": "scripted", "collect.n": 4}
        run = Run(tmp_path, {**settings, "task.source": str(tmp_path / "tasks.jsonl"), "task.verifier": "exact"})
        refused = pytest.raises(BusyError, match=r"held by pid \d+ on .* \(collecting\): one at a time")
        with file_lock(tmp_path / ".collect.lock", "collecting"), refused:
            run.collect()
        assert run.collect().episodes == 4
