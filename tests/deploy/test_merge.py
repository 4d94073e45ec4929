"""Adapters on a server that takes none: merged into the base model's weights, which are reloaded in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from r3agent import OpenAIPolicy
from r3agent.deploy import DeployConfig, deploy, load_version, rollback
from r3agent.deploy.merge import merge
from r3agent.errors import DeployError
from tests.deploy.endpoint import MODULE, RANK, Endpoint, Run, fingerprint, save_adapter

WEIGHT = f"{MODULE}.weight"


def merged(run: Run, adapter_dir: Path, out: Path) -> Path:
    merge(run.base, adapter_dir, out)
    return out


@pytest.fixture
def trained(run: Run, endpoint: Endpoint, tmp_path: Path) -> Run:
    """Two adapters, whose fingerprints are those of the merged weights, and a server that takes no adapters."""
    for seed in (1, 2):
        weights = merged(run, save_adapter(tmp_path / f"a{seed}", seed), tmp_path / f"m{seed}")
        run.train("lora", seed=seed, parent="v0000", known=fingerprint(weights, run.base))
    endpoint.takes_adapters = False
    return run


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_alpha": 3}])
def test_merge_adds_the_scaled_product(tmp_path: Path, run: Run, settings: dict[str, Any]):
    adapter = save_adapter(tmp_path / "adapter", seed=1, **settings)
    old, new = load_file(run.base / "model.safetensors"), merged(run, adapter, tmp_path / "merged")
    product = load_file(adapter / "adapter_model.safetensors")
    down, up = (product[f"base_model.model.{MODULE}.lora_{side}.weight"] for side in "AB")
    scale = settings.get("lora_alpha", 16) / (RANK**0.5 if settings.get("use_rslora") else RANK)
    found = load_file(new / "model.safetensors")
    np.testing.assert_allclose(found[WEIGHT], old[WEIGHT] + scale * up @ down, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], old["model.embed_tokens.weight"])


def test_merge_keeps_what_bfloat16_would_round_away(tmp_path: Path, run: Run):
    path = run.base / "model.safetensors"
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(halved, path)
    adapter = save_adapter(tmp_path / "adapter", seed=1, lora_alpha=1e-4)
    found = load_file(merged(run, adapter, tmp_path / "merged") / "model.safetensors")[WEIGHT]
    change = found - halved[WEIGHT].float().numpy()
    assert 0 < np.abs(change).max() < 1e-2
    assert np.count_nonzero(change) > 0.9 * change.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ],
)
def test_adapter_of_another_kind_is_not_merged(tmp_path: Path, run: Run, settings: dict[str, Any], message: str):
    with pytest.raises(DeployError, match=rf"{message}.*--enable-lora"):
        merge(run.base, save_adapter(tmp_path / "adapter", seed=1, **settings), tmp_path / "merged")


def test_adapters_are_merged_where_none_is_taken(trained: Run, endpoint: Endpoint):
    where = {"registry": trained.registry, "base_url": endpoint.url}
    for version in ("v0001", "v0002", "v0001"):
        report = deploy(version, **where)
        assert (report.strategy, report.served_name) == ("reload", "tiny")
        assert report.fingerprint is not None
        assert report.fingerprint.verdict == "arrived"
        assert endpoint.weight_version == trained.registry.live == version
    assert deploy("v0001", **where).strategy == "none"  # the server has it
    assert not endpoint.adapters
    assert not list(trained.registry.policies_dir.glob("*/merged"))
    assert rollback(to="v0000", **where).strategy == "reload"
    assert endpoint.weights == trained.base


async def test_live_name_is_the_bases_where_adapters_are_merged(trained: Run, endpoint: Endpoint):
    where = {"registry": trained.registry, "base_url": endpoint.url}
    deploy("v0000", **where)
    async with OpenAIPolicy(endpoint.url, "tiny@live", registry=trained.registry) as policy:
        assert (await policy.route()).version == "v0000"
        load_version("v0002", to_evaluate=True, **where)  # replaces the live weights
        route = await policy.route()
        assert (route.model, route.version, trained.registry.live) == ("tiny", "v0002", "v0000")
        deploy("v0001", **where)
        route = await policy.route()
        assert (route.model, route.version) == ("tiny", "v0001")


def test_merged_weights_that_are_wrong_are_taken_back(trained: Run, endpoint: Endpoint):
    where = {"registry": trained.registry, "base_url": endpoint.url}
    deploy("v0001", **where)
    endpoint.mix_with = trained.base
    with pytest.raises(DeployError, match=r"in part.*the weights of v0001 on .*base again; v0001 stays live"):
        deploy("v0002", **where)
    assert (endpoint.weights.parent.name, endpoint.weight_version) == ("v0001", "v0001")


@pytest.mark.parametrize("merging_first", [True, False])
def test_servers_that_would_name_a_version_apart_are_refused(
    trained: Run, endpoint: Endpoint, replica: Endpoint, merging_first: bool
):
    first, second = (endpoint, replica) if merging_first else (replica, endpoint)
    config = DeployConfig(replicas=(second.url,))
    with pytest.raises(DeployError, match=r"takes adapters and .* does not.*; nothing stays live"):
        deploy("v0001", registry=trained.registry, base_url=first.url, config=config)
    assert (endpoint.weights, endpoint.adapters, replica.adapters) == (trained.base, {}, {})
    assert trained.registry.live is None


def test_live_adapter_keeps_its_name_if_a_replica_takes_none(trained: Run, endpoint: Endpoint, replica: Endpoint):
    registry = trained.registry
    old = trained.train("lora", seed=3, parent="v0000")
    deploy(old, registry=registry, base_url=replica.url)
    new = trained.train("lora", seed=4, parent="v0000")
    with pytest.raises(DeployError, match=rf"does not.*; {old} stays live"):
        deploy(new, registry=registry, base_url=replica.url, config=DeployConfig(replicas=(endpoint.url,)))
    assert [*replica.adapters] == [registry.served_name(registry.card(old))] == [f"tiny@{old}"]


def test_live_adapter_keeps_its_name_if_a_merge_fails(trained: Run, endpoint: Endpoint):
    where = {"registry": trained.registry, "base_url": endpoint.url}
    old = trained.train("lora", seed=3, parent="v0000")
    endpoint.takes_adapters = True
    deploy(old, **where)
    endpoint.takes_adapters, endpoint.adapters = False, {}  # restarted with --no-enable-lora
    endpoint.mix_with = trained.base
    with pytest.raises(DeployError, match=rf"in part.*again; {old} stays live"):
        deploy("v0002", **where)
    assert trained.registry.served_name(trained.registry.card(old)) == f"tiny@{old}"
    endpoint.mix_with, endpoint.fails_on = None, "/collective_rpc"  # it cannot be put back either
    with pytest.raises(DeployError, match=rf"putting the server back failed.*; {old} stays live"):
        deploy("v0002", **where)
    assert trained.registry.merges_adapters  # so that a span's version is the one that the server names
