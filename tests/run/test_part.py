"""Part of a collection, by a worker that has only its request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r3agent.episodes.collect import Part
from r3agent.episodes.jobs import episode_jobs
from r3agent.episodes.quota import CollectLimits
from r3agent.run.part import Ended, Failed, collect_part, folder_of, packed, request_of
from r3agent.run.stages import Run
from r3agent.store.fetch import Fetcher
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import read
from r3agent.testing import ScriptedEndpoint

pytest.importorskip("fsspec")
PART = "20260101T000000-0123456789abcdef-000001-"
N = 4


def a_run(folder: Path, url: str) -> Run:
    (folder / "tasks.jsonl").write_text(
        "\n".join(json.dumps({"id": f"t{i}", "prompt": f"{i}?", "answer": "right"}) for i in range(3 * N))
    )
    task = {"task.source": str(folder / "tasks.jsonl"), "task.verifier": "exact", "policy.model": "scripted"}
    engine = {"collect.engine": "ray", "collect.shards": f"file://{folder}/remote", "collect.reflections": 2}
    return Run(folder / "run", {"policy.base_url": url, "collect.n": N, **task, **engine})


def given_to(run: Run, remote: RemoteShards) -> tuple[dict[str, Any], list[dict[str, Any]], Part]:
    """Arguments of a worker for all episodes of the next collection."""
    version, tasks, limits = run.ensure_live().version, run.tasks_of_round(), run.limits_of_round()
    request = {**request_of(run, remote), "path": [], "version": version, "base_url": None, "limits": limits}
    ids = [*episode_jobs(tasks, **run.collect_identity(version, limits))]
    return request, [packed(task) for task in tasks], Part(PART, ids)


def test_worker_needs_no_run_directory_and_uploads_its_part(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda body, _: "right" if len(body["messages"]) > 2 else "wrong") as endpoint:
        run = a_run(tmp_path, endpoint.url)
        remote = RemoteShards(run.config.collect.shards, "mine")
        request, tasks, part = given_to(run, remote)
        shutil.rmtree(run.directory)
        (tmp_path / "tasks.jsonl").unlink()
        ended = collect_part(request, tasks, part, CollectLimits(max_tokens=10**6))
        assert isinstance(ended, Ended)
        assert (ended.tally.episodes, ended.left) == (N, [])
        asked = len(endpoint.received)
        again = collect_part(request, tasks, part, CollectLimits())  # as if the first one had died before it told
        assert isinstance(again, Ended)
        assert len(endpoint.received) == asked
    assert not run.directory.exists()
    (store := tmp_path / "store").mkdir()
    Fetcher(remote, store).fetch(folder_of(part))
    assert sorted(t.trajectory_id for t in read(store, strict=True)) == sorted(part.ids)
    assert not remote.parts()


def test_worker_that_cannot_upload_reports_the_place(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda body, _: "right") as endpoint:
        run = a_run(tmp_path, endpoint.url)
        request, tasks, part = given_to(run, RemoteShards(run.config.collect.shards, "mine"))
        (tmp_path / "remote").write_text("in the way")
        failed = collect_part(request, tasks, part, CollectLimits())
    assert isinstance(failed, Failed)
    assert not failed.is_config
    assert "RecordError: collect.shards = 'file://" in failed.message
