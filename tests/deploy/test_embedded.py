"""Deploying to the embedded server: a process of its own, real weights, fingerprints computed by transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.errors import DeployError
from r3agent.serve import ServerProcess
from r3agent.store.registry import Registry
from tests.deploy.trained import Trained, tiny_base


def unload(server: ServerProcess, name: str) -> None:
    key = {"Authorization": "Bearer sk-test"}
    url = f"{server.base_url}/unload_lora_adapter"
    httpx.post(url, json={"lora_name": name}, headers=key).raise_for_status()


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(tmp_path / "run", tiny_base(tmp_path / "tiny"), "tiny")


@pytest.fixture
def server(trained: Trained) -> Iterator[ServerProcess]:
    log = trained.base.with_name("server.log")
    with ServerProcess(trained.base, api_key="sk-test", log_path=log, options=["--threads", "1"]) as server:
        yield server


def served(server: ServerProcess) -> set[str]:
    answer = httpx.get(f"{server.base_url}/models", headers={"Authorization": "Bearer sk-test"})
    return {model["id"] for model in answer.json()["data"]}


def test_adapters_go_live_roll_back_and_are_told_from_wrong_ones(trained: Trained, server: ServerProcess):
    where = {"registry": trained.registry, "base_url": server.base_url, "api_key": "sk-test"}
    first, second = trained.publish("lora", seed=1), trained.publish("lora", seed=2)
    assert deploy("v0000", **where).strategy == "none"
    for version in (first, second):
        report = deploy(version, config=DeployConfig(keep=1), **where)
        assert report.fingerprint is not None
        assert report.fingerprint.verdict == "arrived"
        assert report.fingerprint.gap < 1e-4
    assert served(server) == {"tiny", "tiny@v0002"}

    wrong = trained.publish("lora", seed=3, card_seed=4)
    with pytest.raises(DeployError, match=r"in part, or are others.*; the server is as it was; v0002 stays live"):
        deploy(wrong, **where)
    assert (trained.registry.live, served(server)) == ("v0002", {"tiny", "tiny@v0002"})

    assert load_version(first, **where).fingerprint is not None
    assert (trained.registry.live, served(server)) == ("v0002", {"tiny", "tiny@v0001", "tiny@v0002"})
    assert rollback(**where).version == first
    assert rollback(**where).version == "v0000"


HARDLY = 1e-6
"""Change of weights that no fingerprint can see."""


def test_two_runs_on_one_server_do_not_touch_each_other_s_adapters(
    trained: Trained, server: ServerProcess, tmp_path: Path
):
    where = {"base_url": server.base_url, "api_key": "sk-test"}
    for seed in (1, 2):
        deploy(trained.publish("lora", seed=seed), registry=trained.registry, **where, config=DeployConfig(keep=1))
    other = Trained(tmp_path / "other", trained.base, "tiny")
    deploy(other.publish("lora", seed=3, change=HARDLY), registry=other.registry, **where)

    report = deploy(trained.publish("lora", seed=4), registry=trained.registry, **where, config=DeployConfig(keep=1))
    assert report.unloaded == ("tiny@v0002",)
    assert served(server) == {"tiny", "tiny@v0001", "tiny@v0003"}
    says = rf"adapter with other weights .* from {other.registry.run_dir}/policies/v0001/adapter-\w+: unload it or"
    with pytest.raises(DeployError, match=says):
        rollback(to="v0001", registry=trained.registry, **where)
    assert trained.registry.live == "v0003"
    assert deploy("v0001", registry=other.registry, **where).version == "v0001"


def test_a_run_made_anew_does_not_go_live_with_the_deleted_one_s_adapter(trained: Trained, server: ServerProcess):
    """The path and the fingerprint are the same, for weights that were hardly trained."""
    where = {"base_url": server.base_url, "api_key": "sk-test"}
    run_dir = trained.registry.run_dir
    deploy(trained.publish("lora", seed=1, change=HARDLY), registry=trained.registry, **where)
    moved = Registry(shutil.copytree(run_dir, run_dir.with_name("moved"), symlinks=True))
    shutil.rmtree(run_dir)
    assert deploy("v0001", registry=moved, **where).fingerprint is not None

    anew = Trained(run_dir, trained.base, "tiny")
    anew.publish("lora", seed=2, change=HARDLY)
    with pytest.raises(DeployError, match=r"adapter with other weights .*; nothing stays live"):
        deploy("v0001", registry=anew.registry, **where)
    unload(server, "tiny@v0001")
    assert deploy("v0001", registry=anew.registry, **where).version == "v0001"


def test_full_weights_are_swapped_in_place_and_put_back(trained: Trained, server: ServerProcess):
    where = {"registry": trained.registry, "base_url": server.base_url, "api_key": "sk-test"}
    right, wrong = trained.publish("full", seed=1), trained.publish("full", seed=2, card_seed=3)
    report = deploy(right, **where)
    assert report.fingerprint is not None
    assert report.fingerprint.gap < 1e-4
    with pytest.raises(DeployError, match=rf"policies/{right}/model again; {right} stays live"):
        deploy(wrong, **where)
    again = deploy(right, **where)
    assert again.fingerprint is not None
    assert again.fingerprint.gap < 1e-4
    assert rollback(**where).strategy == "reload"
