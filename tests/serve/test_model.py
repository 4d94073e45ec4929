from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.errors import ConfigError
from r3agent.serve import Engine, load_model
from tests.serve import tiny


def save(config: PreTrainedConfig, directory: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


SIZES = {
    "vocab_size": 125,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (Qwen2Config(**SIZES), 128),
        (Qwen3Config(**SIZES), 128),
        (MistralConfig(**SIZES, sliding_window=60), 60),
        (Gemma3TextConfig(**SIZES, sliding_window=64, layer_types=["sliding_attention", "full_attention"]), 64),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_engine_equals_generate_for_other_architectures(config: PreTrainedConfig, context: int, tmp_path: Path) -> None:
    directory = save(config, tmp_path / "model")
    served = load_model(str(directory))
    assert served.max_model_len == context
    engine = Engine(served)
    engine.start()
    outcomes = [tiny.RunningRequest(engine, prompt_token_ids=p, max_tokens=9, temperature=0) for p in tiny.PROMPTS]
    for outcome, prompt in zip(outcomes, tiny.PROMPTS, strict=True):
        assert outcome.wait().sequences[0].token_ids == tiny.greedy(tiny.reference(directory), prompt, 9)[0]
    engine.close()


def test_recurrent_layers_are_refused(tmp_path: Path) -> None:
    directory = save(MambaConfig(vocab_size=125, hidden_size=32, num_hidden_layers=2), tmp_path / "mamba")
    with pytest.raises(ConfigError, match="layers of kind linear_attention"):
        load_model(str(directory))


def remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def truncate_weights(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-100])


def drop_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def remove_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize("damage", [remove_config, truncate_weights, drop_a_tensor, remove_tokenizer])
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = shutil.copytree(checkpoint, tmp_path / "model")
    damage(directory)
    with pytest.raises(ConfigError, match=f"model {directory} "):
        load_model(str(directory))


@pytest.mark.parametrize("path", ["nothing", "/nothing/here", "./nothing"])
def test_a_model_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(ConfigError, match=f"model {path}: there is no such directory"):
        load_model(path)


def test_a_longer_context_than_the_models_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len = 1000: the model allows 2 to 256"):
        load_model(str(checkpoint), max_model_len=1000)
