"""Real vLLM: stock vLLM on a GPU, its CPU build elsewhere. The tests are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3agent.errors import ConfigError
from r3agent.serve.process.vllm import PYTHON_VARIABLE, VLLMProcess, find_python

LITTLE_MEMORY = ("--kv-cache-memory-bytes", str(256 * 1024**2))
"""Several of these servers run at once, and each fills its KV cache with zeros when it starts."""
SMALL = (*LITTLE_MEMORY, "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64", "--enforce-eager")
SMALL += ("--max-loras", "64", "--max-cpu-loras", "64")
"""Exact enough to compare logprobs, no time for compiling, and a place for every adapter of these tests."""

GROUPS = {
    "vllm": "vllm",
    "supervised": "vllm",
    "speaker": "bytes",
    "thinker": "bytes",
    "without_adapters": "without_adapters",
    "smollm2": "smollm2",
}
"""Fixtures of servers that several tests share, and the group in which one worker runs these tests; longest first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests by the servers that they share, and begin with the groups."""
    order = [*dict.fromkeys(GROUPS.values()), None]
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    groups = {item: group_of(item) for item in ours}
    for item, group in groups.items():
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    ours.sort(key=lambda item: order.index(groups[item]))
    items[:] = [*(item for item in items if item not in groups), *ours]


def group_of(item: pytest.Item) -> str | None:
    """The group of the first shared server that a test uses, by name or as a parameter."""
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    used = [*item.fixturenames, *(str(value) for value in parameters)]
    return next((group for fixture, group in GROUPS.items() if fixture in used), None)


@pytest.fixture(scope="session", autouse=True)
def _own_core(worker_id: str) -> Iterator[None]:
    """A core for the servers of each of two workers: by itself, vLLM on a CPU binds the threads of all to the first."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if worker_id != "master" and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
            monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", str(int(worker_id[2:]) % (os.cpu_count() or 1)))
        yield


@pytest.fixture(scope="session", autouse=True)
def vllm_python() -> str:
    """The Python that has vLLM; without one all these tests are skipped, unless it was asked for."""
    try:
        return find_python()
    except ConfigError as error:
        if os.environ.get(PYTHON_VARIABLE):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """One server with the policy in the package, for all tests; they leave it as it was."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with VLLMProcess("bundled", name="bundled", log_path=log, options=SMALL) as server:
        yield server


@pytest.fixture(scope="session")
def without_adapters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMProcess]:
    """One server with the policy in the package that takes no adapters."""
    log = tmp_path_factory.mktemp("without") / "log"
    with VLLMProcess("bundled", name="bundled", log_path=log, options=("--no-enable-lora", *SMALL)) as server:
        yield server
