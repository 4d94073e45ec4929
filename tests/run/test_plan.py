"""Plan of a collection, from the episodes that are stored."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from r3agent.cli.main import main
from r3agent.run.stages import Run
from r3agent.testing import ScriptedEndpoint


def answer(body: dict[str, Any], _: int) -> str:
    time.sleep(0.05)  # plans count in tenths of a second
    return "right" if len(body["messages"]) > 2 else "wrong"


def test_plan_of_a_collection_is_of_what_is_left(tmp_path: Path, capsys: Any) -> None:
    file, directory = tmp_path / "tasks.jsonl", tmp_path / "run"
    file.write_text("\n".join(json.dumps({"id": f"t{i}", "prompt": f"{i}?", "answer": "right"}) for i in range(40)))
    settings = {"task.source": str(file), "task.verifier": "exact", "collect.n": 10, "collect.concurrency": 2}
    plan = ["collect", "--run", str(directory), "--plan"]
    assert main(plan) == 2
    assert "there is no such run" in capsys.readouterr().err
    with ScriptedEndpoint(answer) as endpoint:
        run = Run(directory, {"policy.base_url": endpoint.url, "policy.model": "scripted", **settings})
        run.write_config()
        assert main(plan) == 0
        assert endpoint.received == []
        assert [path.name for path in directory.iterdir()] == ["r3.toml"]
        assert "10 episodes to run, of 10; stored: 0" in (text := capsys.readouterr().out)
        assert "--max-episodes 16` collects a few" in text
        some = Run(directory, {"collect.max_episodes": 4}).collect()
    prices = ["--set", "policy.prices={prompt=1, sampled=2}"]
    assert main([*plan, "--json", *prices]) == 0  # without the endpoint
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["stored"], found["measured"], found["in_flight"]) == (10, 4, 4, 2)
    assert found["tokens_sampled"] == round(some.tokens_sampled * 6 / 4)
    assert found["cost"] > 2e-6 * found["tokens_sampled"] > 0
    assert found["bytes"] == round(sum(f.stat().st_size for f in directory.glob("trajectories/*.jsonl")) * 6 / 4)
    assert found["seconds"] > 0
    assert main(plan) == 0
    assert "6 episodes to run, of 10; stored: 4" in capsys.readouterr().out
