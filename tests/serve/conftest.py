from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from r3agent.serve import Engine, ServerProcess, load_model
from r3agent.serve.engine.model import ServedModel
from tests.serve import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same shapes."""
    return tiny.save_model(tmp_path_factory.mktemp("served") / "other", seed=1)


@pytest.fixture(scope="session")
def wider_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other shapes."""
    return tiny.save_model(tmp_path_factory.mktemp("served") / "wider", hidden_size=96)


@pytest.fixture(scope="session")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of different rank and modules."""
    directory = tmp_path_factory.mktemp("adapters")
    return {
        "tiny@v0001": tiny.save_adapter(directory / "1", checkpoint, seed=1, rank=4, targets="all-linear"),
        "tiny@v0002": tiny.save_adapter(directory / "2", checkpoint, seed=2, rank=2, targets=["q_proj", "down_proj"]),
    }


@pytest.fixture(scope="session")
def foreign_adapter(wider_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained on another base."""
    return tiny.save_adapter(
        tmp_path_factory.mktemp("adapters") / "foreign", wider_checkpoint, seed=3, rank=4, targets=["q_proj"]
    )


@pytest.fixture(scope="session")
def served(checkpoint: Path) -> ServedModel:
    return load_model(str(checkpoint))


@pytest.fixture
def engine(served: ServedModel) -> Iterator[Engine]:
    engine = Engine(served)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One real server for all tests; they leave it as it was."""
    log_path = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(checkpoint, log_path=log_path) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    """Raw requests, from the server's root."""
    with httpx.Client(base_url=server.base_url.removesuffix("/v1"), timeout=60) as http:
        yield http


@pytest.fixture
def chat(http: httpx.Client) -> Any:
    """POST /v1/chat/completions: a short prompt and whatever else is asked for."""

    def post(**fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Using 3 4 5 equals 17"}]
        return http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8, **fields})

    return post
