from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from r3agent.store.registry import Registry
from tests.deploy.endpoint import Endpoint, Run, save_model, serving


@pytest.fixture
def run(tmp_path: Path) -> Run:
    base = save_model(tmp_path / "base", seed=0)
    registry = Registry(tmp_path / "run")
    registry.add_base("tiny", str(base))
    return Run(registry, base)


@pytest.fixture
def endpoint(run: Run) -> Iterator[Endpoint]:
    with serving(Endpoint(weights=run.base)) as state:
        yield state


@pytest.fixture
def replica(run: Run) -> Iterator[Endpoint]:
    with serving(Endpoint(weights=run.base)) as state:
        yield state
