"""Real vLLM: stock vLLM on a GPU, its CPU build elsewhere. The tests are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from r3agent.errors import ConfigError
from r3agent.serve.process.vllm import PYTHON_VARIABLE, VLLMProcess, find_python

SMALL = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64", "--enforce-eager")
SMALL += ("--max-loras", "64", "--max-cpu-loras", "64")
"""Exact enough to compare logprobs, no time for compiling, and a place for every adapter of these tests."""


@pytest.fixture(scope="session", autouse=True)
def vllm_python() -> str:
    """The Python that has vLLM; without one all these tests are skipped, unless it was asked for."""
    try:
        return find_python()
    except ConfigError as error:
        if os.environ.get(PYTHON_VARIABLE):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The cores are the server's; what is compared with it here is tiny."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """One server with the policy in the package, for all tests; they leave it as it was."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with VLLMProcess("bundled", name="bundled", log_path=log, options=SMALL) as server:
        yield server
