from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from r3agent.errors import ConfigError
from r3agent.serve.vllm import PYTHON_VARIABLE, VLLMProcess, find_python

OPTIONS = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64", "--enforce-eager")
"""float32, so that logprobs can be compared to the last digits; eager, because compiling takes longer than the tests."""


@pytest.fixture(scope="session", autouse=True)
def has_vllm() -> None:
    """Skips where there is no vLLM, unless it was asked for."""
    try:
        find_python()
    except ConfigError as error:
        if PYTHON_VARIABLE in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """The bundled policy, with adapters and development routes; tests leave it with nothing but the base."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with VLLMProcess("bundled", name="bundled", log_path=log, options=OPTIONS) as server:
        yield server
