"""Base models as people have them: each trains, or is refused in one line before the first step."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from benchmarks.bundled.tokenizer import build_tokenizer
from r3agent.deploy.weights import check_adapter, check_weights
from r3agent.errors import R3Error
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart
from tests.train import recorded
from tests.train.test_architectures import EXPERTS
from tests.train.test_shared_prefix import tiny
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]
TEXT_ONLY = {"capability": "trainable-retokenised", "token_ids": None, "logprobs": None, "prompt_token_ids": None}


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """Copy of the base model, to change."""
    return Path(shutil.copytree(base, tmp_path / "base" / "tiny"))


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


# ---- what is mended ----

UNWRITABLE = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}


@pytest.mark.parametrize(("method", "saves"), [("full", {}), ("full", {"save_steps": 1}), ("lora", {"save_steps": 1})])
def test_generation_config_that_cannot_be_written_is_kept(
    record: Record, start: PolicyStart, copied: Path, tmp_path: Path, method: str, saves: dict[str, Any]
) -> None:
    edit(copied / "generation_config.json", **UNWRITABLE)
    run(record(OUTCOMES), start.model_copy(update={"model": str(copied)}), tmp_path / "v0001", method=method, **saves)
    if method == "full":
        saved = json.loads((tmp_path / "v0001" / "model" / "generation_config.json").read_text())
        assert saved == json.loads((copied / "generation_config.json").read_text())


def added_pad(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})


def added_pad_in_config(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    added_pad(tokenizer, directory)
    edit(directory / "config.json", pad_token_id=tokenizer.pad_token_id)


def no_pad_nor_eos(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None
    edit(directory / "config.json", pad_token_id=None, eos_token_id=None)


def several_eos(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    edit(directory / "config.json", eos_token_id=[tokenizer.eos_token_id, 4])


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("change", [added_pad, added_pad_in_config, no_pad_nor_eos, several_eos])
def test_padding_token_may_be_any(
    record: Record,
    start: PolicyStart,
    copied: Path,
    tmp_path: Path,
    method: str,
    change: Callable[[PreTrainedTokenizerFast, Path], None],
) -> None:
    tokenizer = build_tokenizer()
    change(tokenizer, copied)
    tokenizer.save_pretrained(copied)
    after = start.model_copy(update={"model": str(copied)})
    card = run(record(OUTCOMES), after, tmp_path / "v0001", method=method, share_prompt=False, epochs=1)
    assert card.metrics["mismatch"]["gap"]["max"] < 1e-4
    if method == "full":
        recorded.load(tmp_path / "v0001" / "model")
        saved, own = (json.loads((d / "tokenizer_config.json").read_text()) for d in (tmp_path / "v0001/model", copied))
        assert saved.get("pad_token") == own.get("pad_token")


@pytest.mark.parametrize("form", ["pickled", "sharded"])
def test_weights_may_be_in_other_files(
    record: Record, start: PolicyStart, copied: Path, tmp_path: Path, form: str
) -> None:
    model = recorded.load(copied)
    (copied / "model.safetensors").unlink()
    if form == "pickled":
        torch.save(model.state_dict(), copied / "pytorch_model.bin")
    else:
        model.save_pretrained(copied, max_shard_size="20KB")
        assert len(list(copied.glob("*.safetensors"))) > 1
    run(record(OUTCOMES), start.model_copy(update={"model": str(copied)}), tmp_path / "v0001", epochs=1)
    check_adapter(tmp_path / "v0001" / "adapter", str(copied))


class Hostile:
    """Pickled object that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


# ---- multimodal checkpoints ----


def multimodal(family: str, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Path:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = size | {
        "vocab_size": len(tokenizer) + 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "max_position_embeddings": 512,
        "sliding_window": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gemma4":
        text |= {"vocab_size_per_layer_input": len(tokenizer) + 8, "hidden_size_per_layer_input": 8}
    vision = size | {"image_size": 28, "patch_size": 14, "head_dim": 8, "num_key_value_heads": 4}
    make: Any = CONFIG_MAPPING[family]
    config = make(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForImageTextToText.from_config(config).eval()
    return recorded.save(model, tokenizer, directory)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_multimodal_checkpoint_is_trained_on_text(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str, method: str
) -> None:
    directory = multimodal(family, tokenizer, tmp_path / family)
    rows = recorded.record(AutoModelForCausalLM.from_pretrained(directory).eval(), tokenizer, OUTCOMES)
    start = PolicyStart(version="v0000", name="tiny", model=str(directory))
    run(rows, start, tmp_path / "v0001", method=method, epochs=1)
    if method == "lora":
        check_adapter(tmp_path / "v0001" / "adapter", str(directory))
        with safe_open(tmp_path / "v0001" / "adapter" / "adapter_model.safetensors", "pt") as file:
            names = list(file.keys())
        assert names
        assert all("language_model" in name for name in names)
        targets = json.loads((tmp_path / "v0001/adapter/adapter_config.json").read_text())["target_modules"]
        assert all(any(f".{target}." in name for name in names) for target in targets)
        return
    check_weights(str(tmp_path / "v0001" / "model"), str(directory))
    weights = [
        dict(AutoModelForCausalLM.from_pretrained(path).named_parameters())
        for path in (directory, tmp_path / "v0001/model")
    ]
    changed = {name for name, tensor in weights[0].items() if not torch.equal(tensor, weights[1][name])}
    assert changed
    assert all("language_model" in name or name == "lm_head.weight" for name in changed)


@pytest.mark.parametrize(("family", "values"), [("granitemoe", EXPERTS), ("qwen3_moe", EXPERTS), ("gpt2", {})])
def test_adapter_of_other_layers_passes_the_deploy_check(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, family: str, values: dict[str, Any]
) -> None:
    model = tiny(family, vocab_size=len(tokenizer), max_position_embeddings=512, **values)
    directory = recorded.save(model, tokenizer, tmp_path / family)
    rows = recorded.record(recorded.load(directory), tokenizer, OUTCOMES)
    start = PolicyStart(version="v0000", name="tiny", model=str(directory))
    run(rows, start, tmp_path / "v0001", epochs=1)
    check_adapter(tmp_path / "v0001" / "adapter", str(directory))


# ---- what is refused ----


def pickled_code(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Hostile(directory / "executed")}))


def adapter(directory: Path) -> None:
    model = recorded.load(directory)
    shutil.rmtree(directory)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    peft.save_pretrained(str(directory), save_embedding_layers=False)


def quantised(directory: Path) -> None:
    edit(directory / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})


def newer_tokenizer(directory: Path) -> None:
    edit(directory / "tokenizer.json", model={"type": "Newest", "vocab": {}})


def unknown_tokenizer_class(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    edit(directory / "tokenizer_config.json", tokenizer_class="NewestTokenizer")


def unknown_architecture(directory: Path) -> None:
    edit(directory / "config.json", model_type="newest", architectures=["NewestForCausalLM"])


def another_vocabulary(directory: Path) -> None:
    edit(directory / "config.json", vocab_size=200)


def config_with_text(directory: Path) -> None:
    edit(directory / "config.json", hidden_size="32 wide")


def no_templates(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()


def failing_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages[0]['role'] + 1 }}")


def an_added_token(directory: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["tart with"])
    tokenizer.save_pretrained(directory)


def failing_architecture(directory: Path) -> None:
    tokenizer = build_tokenizer()
    recorded.save(tiny("doge", vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer, directory)


REFUSED: list[tuple[Callable[[Path], None], dict[str, Any], str]] = [
    (pickled_code, {}, "cannot be loaded: .*weights_only"),
    (adapter, {}, "is a LoRA adapter: merge it into its base model"),
    (quantised, {"method": "full"}, r"quantised \(gptq\).*set train.method = 'lora'"),
    (quantised, {}, "cannot be loaded: "),
    (newer_tokenizer, {}, "cannot be loaded: "),
    (unknown_tokenizer_class, {}, "cannot be loaded: "),
    (unknown_architecture, {}, "cannot be loaded: .*newest"),
    (another_vocabulary, {}, r"cannot be loaded: .*embed_tokens.weight is \(125, 32\) in its weights and \(200, 32\)"),
    (config_with_text, {}, "cannot be loaded: .*hidden_size"),
    (no_templates, {"retokenise": "allow"}, "chat template does not take its conversation"),
    (failing_template, {"retokenise": "allow"}, "chat template does not take its conversation"),
    (failing_architecture, {"retokenise": "allow"}, "cannot be trained, DogeForCausalLM fails: IndexError"),
    (an_added_token, {"retokenise": "allow"}, "token id 125, and .* has embeddings of 125 tokens"),
    (lambda _: None, {"lora_target_modules": ["q_proj", "lm_head"]}, "puts an adapter on 'lm_head'"),
    (lambda _: None, {"lora_target_modules": ["embed_tokens"]}, "puts an adapter on 'embed_tokens'"),
    (lambda _: None, {"lora_target_modules": ["mlp"]}, "does not fit"),
]


@pytest.mark.parametrize(("change", "values", "message"), REFUSED)
def test_untrainable_base_model_is_refused_in_one_line(
    record: Record,
    start: PolicyStart,
    copied: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    values: dict[str, Any],
    message: str,
) -> None:
    rows = record(OUTCOMES, **(TEXT_ONLY if "retokenise" in values else {}))
    change(copied)
    stages: list[str] = []

    def note(stage: str, _: Mapping[str, Any]) -> None:
        stages.append(stage)

    (tmp_path / "policies").mkdir()
    after = start.model_copy(update={"model": str(copied)})
    with pytest.raises(R3Error, match=message) as refused:
        run(rows, after, tmp_path / "policies" / "v0001", progress=note, **values)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert "step" not in stages
    assert [path.name for path in (tmp_path / "policies").iterdir() if path.suffix != ".lock"] == []
    assert not (copied / "executed").exists()
