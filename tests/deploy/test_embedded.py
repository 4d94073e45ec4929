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


def test_an_adapter_of_another_run_is_not_taken_for_this_one_s(trained: Trained, server: ServerProcess, tmp_path: Path):
    """Every run has a v0001, and two that have hardly learnt look alike to the fingerprint."""
    where = {"base_url": server.base_url, "api_key": "sk-test"}
    deploy(trained.publish("lora", seed=1), registry=trained.registry, **where)
    copied = Registry(shutil.copytree(trained.registry.run_dir, tmp_path / "copied"))
    assert deploy("v0001", registry=copied, **where).fingerprint is not None

    other = Trained(tmp_path / "other", trained.base, "tiny")
    says = rf"tiny@v0001 on .* is the adapter of another run, {trained.registry.run_dir}.*; nothing stays live"
    with pytest.raises(DeployError, match=says):
        deploy(other.publish("lora", seed=2, card_seed=1), registry=other.registry, **where)
    assert served(server) == {"tiny", "tiny@v0001"}


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
