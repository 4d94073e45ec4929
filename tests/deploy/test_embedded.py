"""Deploying to the embedded server: a process of its own, real weights, fingerprints computed by transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import AutoTokenizer

from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.deploy.fingerprint import measure
from r3agent.deploy.server import Server
from r3agent.errors import DeployError
from r3agent.records.trajectory import Trajectory
from r3agent.serve import ServerProcess
from r3agent.store.models import BUNDLED_DIR
from r3agent.store.registry import Registry
from r3agent.train import PolicyStart, TrainConfig, train
from tests.deploy.trained import Trained, tiny_base
from tests.train import recorded


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
    with ServerProcess(trained.base, api_key="sk-test", log_path=log) as server:
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


@pytest.fixture(scope="module")
def collections() -> list[list[Trajectory]]:
    """Two collections by the bundled policy, with prompts of over 300 tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(BUNDLED_DIR), recorded.load(BUNDLED_DIR)
    prefix = tokenizer("3 + 4 * 5 = 23\n" * 45, add_special_tokens=False)["input_ids"]
    assert len(prefix) > 300
    long = {"prefix": prefix, "sampled": 24}
    return [recorded.record(model, tokenizer, [[1, 0]] * 4, seed=seed, **long) for seed in (0, 1)]


@pytest.mark.parametrize(("method", "dtype"), [("lora", "float32"), ("full", "bfloat16")])
def test_one_small_step_after_long_prompts_is_told_from_none(
    method: str, dtype: str, collections: list[list[Trajectory]], tmp_path: Path
):
    """The noise of bfloat16 is a third of the change of the trained tokens, and as large as that of other tokens."""
    registry = Registry(tmp_path / "run")
    start = PolicyStart.of(registry.add_base("bundled", str(BUNDLED_DIR)), registry.version_dir("v0000"))
    versions = ["v0001", "v0002"]
    for version, episodes in zip(versions, collections, strict=True):
        config = TrainConfig.model_validate({"learning_rate": 1e-5, "method": method})
        card = train(episodes, start=start, version=version, out_dir=registry.version_dir(version), config=config)
        assert card.metrics["steps"] == 1
    options, log = ["--dtype", dtype], tmp_path / "server.log"
    with ServerProcess(BUNDLED_DIR, name="bundled", log_path=log, options=options) as server:
        for version in versions:
            with Server(server.base_url) as client:
                before = measure(client, "bundled", registry.card(version).fingerprint)
            found = load_version(version, registry=registry, base_url=server.base_url).fingerprint
            assert found is not None
            assert (before.verdict, found.verdict) == ("old", "arrived"), (before, found)
            load_version("v0000", registry=registry, base_url=server.base_url)
