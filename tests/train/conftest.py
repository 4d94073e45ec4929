from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart
from tests.train import recorded


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Directory of the base policy, v0000."""
    return recorded.save(recorded.tiny_model(tokenizer), tokenizer, tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture
def start(base: Path) -> PolicyStart:
    return PolicyStart(version="v0000", name="tiny", model=str(base))


@pytest.fixture
def record(base: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[Trajectory]]:
    """`recorded.record` by the base policy."""
    return partial(recorded.record, recorded.load(base), tokenizer)
