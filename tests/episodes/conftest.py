from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.episodes.postgres import MISSING, binaries, postgres
from tests.episodes.savers import Where


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    programs = binaries()
    if programs is None:
        pytest.skip(MISSING)
    with postgres(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """A place for checkpoints that outlives the process."""
    if request.param == "sqlite":
        return Where("sqlite", str(tmp_path / "checkpoints.sqlite"))
    return Where("postgres", request.getfixturevalue("postgres_url"))
