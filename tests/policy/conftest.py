"""A run whose policy is `tiny`, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from r3agent.store.registry import Registry
from r3agent.testing import ScriptedEndpoint
from tests.support.registries import tiny_registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return tiny_registry(tmp_path)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint("hi", model="tiny") as endpoint:
        yield endpoint
