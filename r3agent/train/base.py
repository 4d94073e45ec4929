"""Base models as people have them: checks before anything is computed, and harmless faults that are mended.

Loading executes nothing of a model: transformers reads pickled weights with `weights_only`, and no remote code.
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from r3agent._util.files import disk_errors
from r3agent.errors import ConfigError, R3Error, TrainingError
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.row import Row

logger = logging.getLogger(__name__)

READ_BY_KERNELS = ("out_proj", "conv1d")
"""Layers of state-space models that peft refuses to adapt."""


@contextmanager
def loading(start: PolicyStart) -> Generator[None]:
    """Turn any error of loading a model into a ConfigError of one line."""
    try:
        with no_progress_bars():
            yield
    except R3Error:
        raise
    except Exception as error:  # those of a bad directory have no common base class
        raise ConfigError(
            f"model {start.model!r} cannot be loaded: {one_line(error)}; copy or download it again, or choose another"
        ) from error


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Disable the progress bars of transformers inside the block."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """Render an error of a library on one line, with its class if the text alone says little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (OSError, ValueError)) and text else f"{type(error).__name__}: {text}"


# ---- before loading ----


def read_config(start: PolicyStart, config: TrainConfig) -> PreTrainedConfig:
    """Read the configuration of the base model, and mend a padding token that has no embedding.

    Raises:
        ConfigError: it cannot be read, is that of an adapter, or the weights are quantised and all would be trained.
    """
    with loading(start):
        if find_adapter_config_file(start.model) is not None:
            raise ConfigError(
                f"model {start.model!r} is a LoRA adapter: merge it into its base model (merge_and_unload of peft), "
                "save the result with its tokenizer, serve that and name it as policy.model and policy.base_model"
            )
        found: Any = AutoConfig.from_pretrained(start.model)
    quantised = getattr(found, "quantization_config", None)
    if quantised and config.method == "full":
        raise ConfigError(
            f"train.method = 'full': the weights of {start.model} are quantised ({_quantiser(quantised)}), and all of "
            "them cannot be trained; set train.method = 'lora', or start from the model that they were quantised from"
        )
    for part in (found, found.get_text_config()):
        pad, size = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if pad is not None and size is not None and pad >= size:
            part.pad_token_id = None  # `nn.Embedding` refuses it
            logger.warning("%s: pad_token_id = %s has no embedding among %s, and is not used", start.model, pad, size)
    return found


def _quantiser(quantised: Any) -> str:
    settings = quantised if isinstance(quantised, dict) else quantised.to_dict()
    return str(settings.get("quant_method") or "an unnamed method")


# ---- after loading ----


def towers(model: PreTrainedModel) -> str | None:
    """Return a regular expression of the modules that text does not reach, such as a vision tower; `None` without any.

    Text reaches the decoder and the output head.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    reached = [name for name, module in model.named_modules() if module is decoder or module is head]
    pattern = rf"(?!({'|'.join(map(re.escape, reached))})(\.|$)).*"
    has_weights = any(re.fullmatch(pattern, name) for name, _ in model.named_parameters())
    return pattern if has_weights and all(reached) else None


def not_adapted(model: PreTrainedModel, *, is_default: bool) -> str | None:
    """Return a regular expression of the modules that get no adapter, or `None`.

    Args:
        is_default: leave out also routers of experts, whose output is not a tensor, and layers that kernels of
            state-space models read directly; if their names were set, peft gives the reason against them.
    """
    patterns = [towers(model)]
    if is_default:
        named: Any = model.named_modules()
        own = [] if getattr(model, "is_quantized", False) else [n for n, m in named if _is_router(m)]
        patterns += [re.escape(name) for name in own]
        if hasattr(model.config.get_text_config(), "mamba_d_conv") or "mamba" in model.config.model_type:
            patterns.append(rf".*\.({'|'.join(READ_BY_KERNELS)})")
    return "|".join(filter(None, patterns)) or None


def _is_router(module: torch.nn.Module) -> bool:
    linear = torch.nn.Linear
    return isinstance(module, linear) and type(module).forward is not linear.forward


def freeze_towers(model: PreTrainedModel) -> None:
    """Freeze the weights that text does not reach, which would have no gradient."""
    if (unreached := towers(model)) is not None:
        for name, parameter in model.named_parameters():
            if re.fullmatch(unreached, name):
                parameter.requires_grad_(False)


def check_adapted(model: PeftModel, start: PolicyStart, config: TrainConfig) -> None:
    """Refuse an adapter on the embeddings or the output head.

    TRL computes logprobs without the head's adapter; embeddings are often tied to the head, where the adapter would
    act once here and twice on a server, and servers load neither in general.

    Raises:
        ConfigError: one of them has an adapter.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (
            module is model.get_output_embeddings() or isinstance(module.get_base_layer(), torch.nn.Embedding)
        ):
            layer = name.rpartition(".")[2]
            raise ConfigError(
                f"lora_target_modules = {config.lora_target_modules!r} puts an adapter on {layer!r} of {start.model}: "
                f"servers do not apply one to embeddings or the output head as training does; leave {layer!r} out, or "
                "set train.method = 'full'"
            )


@contextmanager
def fitting(
    start: PolicyStart, model: PreTrainedModel | PeftModel, fits: Callable[[], bool] = lambda: False
) -> Generator[None]:
    """Turn an error of an architecture's own code into a ConfigError of one line.

    Args:
        fits: function that returns True when the model has been computed with, so that errors have another cause.
    """
    try:
        yield
    except R3Error:
        raise
    except Exception as error:  # an unknown model may fail in any way
        if fits():
            raise
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        raise ConfigError(
            f"model {start.model!r} cannot be trained, {type(inner).__name__} fails: {one_line(error)}; choose "
            "another, or another version of transformers"
        ) from error


def trainer_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel) -> Any:
    """Copy a tokenizer with a padding token that the model has an embedding of.

    No padded position is attended to, so any token serves; the policy's own tokenizer is saved as it is.
    """
    copied: Any = copy.deepcopy(tokenizer)
    size = n_embeddings(model)
    if copied.pad_token_id is None or not 0 <= copied.pad_token_id < size:
        eos = copied.eos_token_id
        copied.pad_token = copied.eos_token if eos is not None and eos < size else copied.convert_ids_to_tokens(0)
    return copied


def n_embeddings(model: PreTrainedModel | PeftModel) -> int:
    """Return the number of tokens that a model has an embedding of."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[0]


def check_ids(rows: Sequence[Row], model: PreTrainedModel | PeftModel, start: PolicyStart) -> None:
    """Refuse rows with a token that the model has no embedding of.

    Raises:
        TrainingError: there is one.
    """
    size = n_embeddings(model)
    for row in rows:
        if (largest := row.largest_id) >= size:
            raise TrainingError(
                f"span {row.span_id} of trajectory {row.trajectory_id} has token id {largest}, and {start.model} has "
                f"embeddings of {size} tokens: its tokenizer, or the server's model, has tokens that this model was "
                "not given; resize its embeddings and save both again, or name the model that the server serves"
            )


# ---- saving ----


def make_savable(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, start: PolicyStart, directory: Path | None
) -> None:
    """Save all but the weights for a trial, so that a training is not lost when it ends.

    A generation config that transformers reads but does not write is replaced by one that it writes; the version gets
    the base model's own (`copy_generation_config`).

    Args:
        directory: directory for the trial, which is left empty; `None` for no trial.

    Raises:
        ConfigError: the configuration or the tokenizer cannot be saved.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner.can_generate():
        try:
            inner.generation_config.validate(strict=True)
        except ValueError:
            inner.generation_config = GenerationConfig.from_model_config(inner.config)
    if directory is None:
        return
    try:
        with disk_errors(directory), TemporaryDirectory(dir=directory) as trial:
            for part in (tokenizer, inner.config, *([inner.generation_config] if inner.can_generate() else [])):
                part.save_pretrained(trial)
    except R3Error:
        raise
    except Exception as error:  # as for loading
        raise ConfigError(
            f"model {start.model!r} can be loaded, but its configuration or tokenizer cannot be saved again: "
            f"{one_line(error)}; correct the file in the model's directory"
        ) from error


def copy_generation_config(start: PolicyStart, directory: Path) -> None:
    """Copy the base model's generation config, so that a server samples by the same defaults."""
    try:
        own = cached_file(start.model, GENERATION_CONFIG_NAME)
    except OSError:  # it has none
        return
    shutil.copyfile(str(own), directory / GENERATION_CONFIG_NAME)
