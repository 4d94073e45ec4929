"""Loading the starting policy as a trainable model, and saving the trained one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from r3agent.errors import ConfigError
from r3agent.store.registry import ADAPTER_DIR, MODEL_DIR
from r3agent.train.base import (
    check_adapted,
    copy_generation_config,
    freeze_towers,
    loading,
    no_progress_bars,
    not_adapted,
    one_line,
    read_config,
)
from r3agent.train.config import PolicyStart, TrainConfig


def load_tokenizer(start: PolicyStart) -> PreTrainedTokenizerBase:
    """Load the starting policy's tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    with loading(start):
        return AutoTokenizer.from_pretrained(start.model)


def load_model(start: PolicyStart, config: TrainConfig) -> PreTrainedModel | PeftModel:
    """Load the starting policy to train: with its own or a new adapter for LoRA, merged for full weights.

    Raises:
        ConfigError: the weights cannot be loaded, or the adapter is of another base model.
    """
    set_seed(config.seed)
    base_config = read_config(start, config)
    with loading(start):
        loader: Any = AutoModelForCausalLM
        model, info = loader.from_pretrained(
            start.model,
            config=base_config,
            dtype=loaded_dtype(config),
            ignore_mismatched_sizes=True,  # transformers' own message names no tensor
            output_loading_info=True,
        )
        for name, stored, expected in sorted(info["mismatched_keys"]):
            raise ValueError(f"{name} is {tuple(stored)} in its weights and {tuple(expected)} by its config.json")
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if start.adapter is not None:
        model = _with_adapter(model, start.adapter, start, config)
        return model if config.method == "lora" else _merged(model)
    if config.method == "full":
        freeze_towers(model)
        return model
    return add_adapter(model, start, config)


def loaded_dtype(config: TrainConfig) -> torch.dtype:
    """Return the type of the weights that are loaded: those that are trained are float32."""
    return torch.bfloat16 if config.method == "lora" and config.dtype == "bfloat16" else torch.float32


def add_adapter(model: PreTrainedModel, start: PolicyStart, config: TrainConfig) -> PeftModel:
    """Add a new LoRA adapter.

    Raises:
        ConfigError: `train.lora_target_modules` does not fit the model.
    """
    targets = config.lora_target_modules
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what `check_adapted` refuses
            adapted = get_peft_model(
                model,
                LoraConfig(
                    r=config.lora_r,
                    lora_alpha=config.lora_alpha,
                    lora_dropout=config.lora_dropout,
                    target_modules=targets if isinstance(targets, str) else list(targets),
                    exclude_modules=not_adapted(model, is_default=targets == "all-linear"),
                    task_type="CAUSAL_LM",
                ),
            )
    except Exception as error:  # of a package that a quantised layer needs, too
        raise ConfigError(f"lora_target_modules = {targets!r} does not fit {start.model}: {one_line(error)}") from error
    check_adapted(adapted, start, config)
    if targets == "all-linear":  # peft lists excluded layers too, and servers refuse names that they do not adapt
        found = cast(list[str], adapted.base_model.targeted_module_names)
        lora = cast(LoraConfig, adapted.peft_config["default"])
        lora.target_modules = sorted({name.rpartition(".")[2] for name in found})
    return adapted


def save_weights(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    start: PolicyStart,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `adapter/`, or `model/` with the tokenizer and its chat template, as safetensors.

    Args:
        state: all weights, if the model holds only a shard of them.
    """
    with no_progress_bars():
        if isinstance(model, PeftModel):
            model.peft_config["default"].base_model_name_or_path = start.model
            model.save_pretrained(str(directory / ADAPTER_DIR), save_embedding_layers=False, state_dict=state)
        else:
            if state is not None:  # tied weights are found by shared memory, and gathered ones share none
                tied: dict[str, str] = model.all_tied_weights_keys
                state = {name: tensor for name, tensor in state.items() if name not in tied}
            model.save_pretrained(directory / MODEL_DIR, state_dict=state)
            tokenizer.save_pretrained(directory / MODEL_DIR)
            copy_generation_config(start, directory / MODEL_DIR)


def _with_adapter(model: PreTrainedModel, adapter: Path, start: PolicyStart, config: TrainConfig) -> PeftModel:
    base = _adapter_base(adapter)
    misfit = ConfigError(
        f"{adapter} is an adapter of {base}, not of {start.model}: start from the base model it was trained on"
    )
    if Path(base).name != Path(start.model).name:  # a run directory may be moved, so the parents may differ
        raise misfit
    lora = cast(LoraConfig, LoraConfig.from_pretrained(str(adapter)))
    lora.inference_mode = False
    lora.base_model_name_or_path = start.model
    if config.method == "lora":
        _check_shape(lora, config, start)
    peft_model = get_peft_model(model, lora)
    try:
        result = set_peft_model_state_dict(peft_model, load_peft_weights(str(adapter), device="cpu"))
    except RuntimeError as error:
        raise misfit from error
    except SafetensorError as error:
        raise ConfigError(f"{adapter}: {error}; the adapter is cut short, train the version again") from error
    if result.unexpected_keys or any("lora_" in key for key in result.missing_keys):
        raise misfit
    return peft_model


def _adapter_base(adapter: Path) -> str:
    try:
        return json.loads((adapter / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{adapter}: not a LoRA adapter ({error!r}); name a directory with adapter_config.json"
        ) from error


def _check_shape(lora: LoraConfig, config: TrainConfig, start: PolicyStart) -> None:
    """Refuse settings of another shape: an adapter that is trained further keeps its shape."""
    shape: dict[str, Any] = {"lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
    if config.lora_target_modules != "all-linear":
        shape["lora_target_modules"] = set(lora.target_modules or ())
    for setting, has in shape.items():
        value = getattr(config, setting)
        if (set(value) if isinstance(has, set) else value) != has:
            raise ConfigError(
                f"{setting} = {value}, but the adapter of {start.version} has {has} and goes on from itself; "
                f"set {setting} = {has}, or start from the base model"
            )


def _merged(model: PeftModel) -> PreTrainedModel:
    merged = model.merge_and_unload()
    merged.requires_grad_(True)
    freeze_towers(merged)
    return merged
