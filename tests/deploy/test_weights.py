"""Defects of weights are found before a server is touched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from r3agent.deploy.weights import check_adapter, check_weights
from r3agent.errors import DeployError
from tests.deploy.endpoint import MODULE, save_adapter, save_model


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "base", seed=0))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def test_whole_adapter_passes(tmp_path: Path, base: str):
    check_adapter(save_adapter(tmp_path / "adapter", seed=1), base)
    check_adapter(tmp_path / "adapter", "org/on-a-hub")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file(tmp_path: Path, base: str, name: str):
    adapter = save_adapter(tmp_path / "adapter", seed=1)
    (adapter / name).unlink()
    with pytest.raises(DeployError, match=f"{adapter}.*the weights are incomplete, train the version again"):
        check_adapter(adapter, base)


def test_missing_directory(tmp_path: Path, base: str):
    with pytest.raises(DeployError, match="No such file or directory"):
        check_adapter(tmp_path / "nowhere", base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_torn_file(tmp_path: Path, base: str, name: str):
    adapter = save_adapter(tmp_path / "adapter", seed=1)
    cut(adapter / name)
    with pytest.raises(DeployError, match=f"{adapter / name}: .*incomplete"):
        check_adapter(adapter, base)


def test_rank_is_the_configured_one(tmp_path: Path, base: str):
    adapter = save_adapter(tmp_path / "adapter", seed=1, rank=4, r=8)
    with pytest.raises(DeployError, match="q_proj has ranks 4 and 4, its config says 8"):
        check_adapter(adapter, base)
    check_adapter(save_adapter(tmp_path / "mixed", seed=1, rank=4, r=8, rank_pattern={"q_proj": 4}), base)


def test_every_target_module_has_tensors(tmp_path: Path, base: str):
    adapter = save_adapter(tmp_path / "adapter", seed=1, target_modules=["q_proj", "v_proj"])
    with pytest.raises(DeployError, match="target module v_proj has no tensors"):
        check_adapter(adapter, base)


def test_adapter_of_another_size_of_base(tmp_path: Path, base: str):
    adapter = save_adapter(tmp_path / "adapter", seed=1, size=32)
    with pytest.raises(DeployError, match=rf"32 x 32, in {base} it is 16 x 16: the adapter belongs to another base"):
        check_adapter(adapter, base)


def test_adapter_of_another_kind_of_base(tmp_path: Path):
    other = save_model(tmp_path / "other", seed=0)
    path = other / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(MODULE.encode(), MODULE.replace("model", "gpt_2").encode()))
    adapter = save_adapter(tmp_path / "adapter", seed=1)
    with pytest.raises(DeployError, match=f"none of its modules, such as {MODULE}, is in {other}"):
        check_adapter(adapter, str(other))


def test_quantized_base_is_left_to_the_server(tmp_path: Path, base: str):
    config = Path(base) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"bits": 4}}))
    check_adapter(save_adapter(tmp_path / "adapter", seed=1, size=32), base)


def test_whole_checkpoint_passes(tmp_path: Path, base: str):
    check_weights(str(save_model(tmp_path / "model", seed=1)), base)
    check_weights("org/on-a-hub", base)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "mtp.fc.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.masked_bias"]
)
def test_checkpoint_may_lack_what_no_model_loads(tmp_path: Path, base: str, name: str):
    path = Path(base) / "model.safetensors"
    save_file({**load_file(path), name: numpy.zeros(2)}, path)
    check_weights(str(save_model(tmp_path / "model", seed=1)), base)
    save_file({**load_file(path), "model.layers.9.mlp.up_proj.weight": numpy.zeros(2)}, path)
    with pytest.raises(DeployError, match=r"layers\.9\.mlp\.up_proj\.weight is None"):
        check_weights(str(tmp_path / "model"), base)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_checkpoint(tmp_path: Path, base: str, name: str):
    model = save_model(tmp_path / "model", seed=1)
    (model / name).unlink()
    with pytest.raises(DeployError, match="incomplete"):
        check_weights(str(model), base)


def test_checkpoint_of_another_architecture(tmp_path: Path, base: str):
    model = save_model(tmp_path / "model", seed=1, size=32)
    with pytest.raises(DeployError, match=r"is \(32, 32\), in .* it is \(16, 16\); only weights of the same arch"):
        check_weights(str(model), base)
