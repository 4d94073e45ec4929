"""Collect, train, deploy and evaluate on a real vLLM server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3agent.cli.main import main
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.trajectories import load
from tests.vllm.test_swap import served, unload_all

SETTINGS = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.n": 48,
    "collect.reflections": 4,
    "train.learning_rate": 1e-3,
    "train.batch_size": 64,
    "eval.n": 40,
}


@pytest.fixture
def server(vllm: VLLMProcess) -> Iterator[VLLMProcess]:
    yield vllm
    unload_all(vllm)


def test_two_rounds_of_the_loop(server: VLLMProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    code = main(["loop", "--rounds", "2", "--run", str(run), "--url", server.base_url, "--json", *settings])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["live"] == "v0002" else 3)
    assert [r["round"] for r in report["rounds"]] == [1, 2]
    spans = [span for t in load(run / "trajectories") for span in t.spans]
    assert {s.capability for s in spans} == {"trainable-exact"}
    second = json.loads((run / "policies" / "v0002" / "card.json").read_text())
    assert {s.policy_version for s in spans} == {"v0000", second["parent"]}
    assert {s.model for s in spans} == {"bundled"} | ({f"bundled@{second['parent']}"} - {"bundled@v0000"})
    # Both versions were compared on the same tasks, loaded side by side.
    old, new = (load(run / "gate" / "v0002" / version) for version in (second["parent"], "v0002"))
    assert len({t.task.id for t in old}) >= 40
    assert {t.task.id for t in old} == {t.task.id for t in new}
    assert {s.policy_version for t in (*old, *new) for s in t.spans} == {second["parent"], "v0002"}
    assert served(server) >= {"bundled@v0001", "bundled@v0002"}
    if report["live"] != "v0000":
        assert main(["rollback", "--to", "v0000", "--run", str(run)]) == 0
