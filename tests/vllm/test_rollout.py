"""Servers that are replaced, several servers, and a script of the user's: on real vLLM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from benchmarks.vllm_swap import supervised_vllm, supervisors
from r3agent.deploy import DeployConfig, deploy, rollback
from r3agent.errors import DeployError
from r3agent.serve.process.vllm import VLLMProcess
from r3agent.store.models import BUNDLED_DIR
from r3agent.testing import traffic_through
from tests.deploy.test_rollout import LOAD, script
from tests.deploy.trained import Trained
from tests.vllm.conftest import SMALL
from tests.vllm.test_swap import asking, assert_stamps_are_true, live, served, told, unload_all

STOP_S = 60.0
CORES = "VLLM_CPU_OMP_THREADS_BIND"
"""Cores of vLLM on a CPU; a GPU ignores it."""
LOW_RANK = ("--max-lora-rank", "8")


class Supervised(NamedTuple):
    """A run with a server that `r3agent serve --run` has started."""

    trained: Trained
    base_url: str

    def supervisors(self) -> list[int]:
        return supervisors(self.trained.registry.run_dir)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    run_dir = tmp_path_factory.mktemp("restart") / "run"
    trained = Trained(run_dir, BUNDLED_DIR, "bundled")
    trained.registry.set_live("v0000")
    with supervised_vllm(run_dir, [*SMALL, *LOW_RANK]) as base_url:
        yield Supervised(trained, base_url)


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    trained = Trained(tmp_path / "run", BUNDLED_DIR, "bundled")
    trained.registry.set_live("v0000")
    return trained


async def test_a_supervised_server_is_replaced_under_load(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the core of the busy server that it replaces, a new one does not start within minutes.
    monkeypatch.setenv(CORES, "1" if os.environ.get(CORES, "0") == "0" else "0")
    trained, old = supervised.trained, psutil.Process(*supervised.supervisors())
    trained.publish("full", seed=1)
    where = {"registry": trained.registry, "base_url": supervised.base_url}
    async with live(supervised.base_url, trained) as policy:
        change = partial(deploy, "v0001", config=DeployConfig(strategy="restart"), **where)
        traffic = await traffic_through(change, asking(policy), clients=4, pause_s=0.5)
    print(told("restart", traffic))
    drawn = [generation for answer in traffic.answers for generation in answer]
    assert {g.policy_version for g in drawn} == {"v0000", "v0001"}
    assert_stamps_are_true(trained, drawn)
    old.wait(STOP_S)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{supervised.base_url}/models")
    new = trained.registry.live_base_url
    assert new not in (None, supervised.base_url)
    assert len(supervised.supervisors()) == 1
    assert rollback(**where).base_url == new
    assert trained.registry.live == "v0000"


def test_replicas_get_an_adapter_in_turn_or_none_keeps_it(
    vllm: VLLMProcess, supervised: Supervised, trained: Trained
) -> None:
    replica = supervised.trained.registry.live_base_url or supervised.base_url
    where = {"registry": trained.registry, "base_url": vllm.base_url, "config": DeployConfig(replicas=(replica,))}
    deploy(trained.publish("lora", seed=1), **where)
    names = {"bundled", "bundled@v0001"}
    assert served(vllm) == names
    assert {model["id"] for model in httpx.get(f"{replica}/models").json()["data"]} == names
    with pytest.raises(DeployError, match=r"(?s)max-lora-rank.*v0001 stays live"):
        deploy(trained.publish("lora", seed=2, rank=16), **where)
    assert served(vllm) == names
    assert trained.registry.live == "v0001"
    unload_all(vllm)


def test_a_script_of_the_user_brings_an_adapter(vllm: VLLMProcess, trained: Trained, tmp_path: Path) -> None:
    where = {"registry": trained.registry, "base_url": vllm.base_url}
    report = deploy(trained.publish("lora", seed=1), config=script(tmp_path / "roll_out.sh", LOAD), **where)
    assert report.fingerprint is not None
    assert (report.strategy, report.fingerprint.verdict, trained.registry.live) == ("command", "arrived", "v0001")
    unload_all(vllm)
