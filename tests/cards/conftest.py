from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.evaluate import compare
from r3agent.evaluate.comparison import write_comparison
from r3agent.store.history import Event, record_event
from r3agent.store.registry import Registry
from r3agent.store.shards import TrajectoryWriter
from r3agent.train import PolicyStart
from tests.evaluate.episodes import episode
from tests.train import recorded, versions


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter v0001 from the base, trained from stored episodes, and full weights v0002 from it."""
    run = tmp_path_factory.mktemp("cards") / "run"
    tokenizer = build_tokenizer()
    base = recorded.save(recorded.tiny_model(tokenizer), tokenizer, run.parent / "tiny")
    registry = Registry(run)
    registry.add_base("tiny", str(base))
    registry.set_live("v0000")
    (run / "r3.toml").touch()
    episodes = recorded.record(recorded.load(base), tokenizer, versions.OUTCOMES)
    with TrajectoryWriter(run / "trajectories") as store:
        for one in episodes:
            store.append(one)
    for version, chosen, method in (("v0001", episodes, "lora"), ("v0002", episodes[:2], "full")):
        start = PolicyStart.of(registry.card("v0000"), registry.version_dir("v0000"))
        versions.run(chosen, start, registry.version_dir(version), version=version, method=method)
    better = [[episode(str(i), False, i < n, version=v) for i in range(20)] for v, n in (("v0000", 5), ("v0001", 15))]
    file = "gate/v0001/v0000-v0001.gate.abc.json"
    write_comparison(run / file, "settings", compare(*better), drawn={})
    event = Event(event="evaluated", version="v0001", other="v0000", file=file)
    record_event(registry.policies_dir, event)
    return run
