from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError
from r3agent.serve.engine.lora import read_adapter
from r3agent.serve.engine.model import ServedModel


@pytest.fixture
def adapter(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(adapters["tiny@v0001"], tmp_path / "adapter")


def configure(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_scaling_is_part_of_what_is_read(served: ServedModel, adapter: Path) -> None:
    plain = read_adapter("a", str(adapter), served.model)
    configure(adapter, use_rslora=True)
    rank_stabilised = read_adapter("a", str(adapter), served.model)
    for module, up in plain.up.items():
        assert (rank_stabilised.up[module] / up).mean().item() == pytest.approx(plain.rank**0.5)


def test_a_directory_without_an_adapter_is_not_found(served: ServedModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No adapter found"):
        read_adapter("a", str(tmp_path / "nothing"), served.model)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_truncated_file_is_refused(served: ServedModel, adapter: Path, file: str) -> None:
    content = (adapter / file).read_bytes()
    (adapter / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="is incomplete"):
        read_adapter("a", str(adapter), served.model)


def test_missing_weights_are_refused(served: ServedModel, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="is incomplete"):
        read_adapter("a", str(adapter), served.model)


def test_an_adapter_of_another_base_is_refused(served: ServedModel, foreign_adapter: Path) -> None:
    with pytest.raises(ConfigError, match=r"q_proj has shapes .* this model needs .*: it was trained on another base"):
        read_adapter("a", str(foreign_adapter), served.model)


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"alpha_pattern": {"q_proj": 2}}],
)
def test_kinds_that_would_be_computed_wrongly_are_refused(
    served: ServedModel, adapter: Path, settings: dict[str, Any]
) -> None:
    configure(adapter, **settings)
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} = .* is not supported"):
        read_adapter("a", str(adapter), served.model)
