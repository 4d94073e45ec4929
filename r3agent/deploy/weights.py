"""Check weights on disk before a server is touched.

Only the headers of safetensors files are read. The server must see the directories under the same paths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from r3agent.errors import DeployError

Shapes: TypeAlias = dict[str, tuple[int, ...]]
"""Tensor shapes by name."""

INCOMPLETE = "the weights are incomplete, train the version again"


_MAY_LACK = re.compile(r"lm_head\.weight$|(?:^|\.)mtp\.|\.rotary_emb\.\w+$|\.attn(?:ention)?\.(?:masked_)?bias$")
"""Tensors that a checkpoint may lack: a tied output head, layers that predict further tokens, and buffers that older
versions of transformers saved."""


def check_adapter(adapter_dir: Path, base_model: str) -> None:
    """Check the files and the shapes of an adapter against its base model.

    Raises:
        DeployError: a file is missing or truncated, the ranks are not the configured ones, a target module has no
            tensors, or the adapter belongs to another base model.
    """
    config = read_json(adapter_dir / "adapter_config.json")
    shapes = read_shapes(adapter_dir)
    downs, ups = _modules(shapes, ".lora_A.weight"), _modules(shapes, ".lora_B.weight")
    if not downs or downs.keys() != ups.keys():
        raise DeployError(f"{adapter_dir}: lora_A for {len(downs)} modules, lora_B for {len(ups)}; {INCOMPLETE}")
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(f".{module}".endswith(f".{target}") for module in downs):
            raise DeployError(f"{adapter_dir}: target module {target} has no tensors; {INCOMPLETE}")
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    base = {in_text_model(name): shape for name, shape in _base_shapes(base_model).items()}
    for module, (rank, n_in) in downs.items():
        tensor = in_text_model(f"{module}.weight")
        n_out, up_rank = ups[module]
        is_stacked = ".experts" in module and any(each and rank % each == 0 for each in ranks)  # one rank per expert
        if rank != up_rank or not (is_stacked or rank in ranks):
            raise DeployError(
                f"{adapter_dir}: {module} has ranks {rank} and {up_rank}, its config says {', '.join(map(str, ranks))}"
            )
        if sorted(base.get(tensor, (n_out, n_in))) != sorted((n_out, n_in)):  # some architectures store it transposed
            raise DeployError(
                f"{adapter_dir}: {module} is {n_out} x {n_in}, in {base_model} it is "
                f"{' x '.join(map(str, base[tensor]))}: the adapter belongs to another base model"
            )
    if base and not any(in_text_model(f"{module}.weight") in base for module in downs):
        raise DeployError(
            f"{adapter_dir}: none of its modules, such as {next(iter(downs))}, is in {base_model}: "
            "the adapter belongs to another base model"
        )


def check_weights(weights: str, base_model: str) -> None:
    """Check the files and the shapes of full weights; the server checks a hub id.

    Raises:
        DeployError: a file is missing or truncated, or the tensors are not those of the base model.
    """
    if not Path(weights).is_absolute():
        return
    read_json(Path(weights) / "config.json")
    shapes = {in_text_model(name): shape for name, shape in read_shapes(Path(weights)).items()}
    for name, shape in _base_shapes(base_model).items():
        found = shapes.get(in_text_model(name), shape if _MAY_LACK.search(name) else None)
        if found != shape:
            raise DeployError(
                f"{weights}: {name} is {found}, in {base_model} it is {shape}; "
                "only weights of the same architecture can be reloaded in place"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DeployError: the file is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DeployError(f"{path}: {error.strerror}; {INCOMPLETE}") from error
    except ValueError as error:
        raise DeployError(f"{path}: not JSON: {error}; {INCOMPLETE}") from error
    if not isinstance(data, dict):
        raise DeployError(f"{path}: not a JSON object; {INCOMPLETE}")
    return data


def read_shapes(directory: Path) -> Shapes:
    """Read the tensors' shapes from the headers of a directory's safetensors files.

    Raises:
        DeployError: there is no safetensors file, or one is truncated.
    """
    shapes: Shapes = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes.update((name, tuple(file.get_slice(name).get_shape())) for name in file.offset_keys())
        except (SafetensorError, OSError) as error:
            raise DeployError(f"{path}: {error}; {INCOMPLETE}") from error
    if not shapes:
        raise DeployError(f"{directory}: no safetensors file; {INCOMPLETE}")
    return shapes


def _base_shapes(base_model: str) -> Shapes:
    """Read the base model's shapes; empty if they cannot be compared: a hub id, quantized, or not in safetensors."""
    directory = Path(base_model)
    if not directory.is_dir() or "quantization_config" in read_json(directory / "config.json"):
        return {}
    if any(directory.glob("*.bin")) and not any(directory.glob("*.safetensors")):
        return {}
    return read_shapes(directory)


def in_text_model(name: str) -> str:
    """Drop the parts of a tensor's name that checkpoints of different age have in different places, or lack."""
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model", "transformer"))


def _modules(shapes: Shapes, suffix: str) -> dict[str, tuple[int, int]]:
    """Map each module's name in the base model to the shape of its two-dimensional tensor."""
    return {
        name.removeprefix("base_model.model.").removesuffix(suffix): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(suffix) and len(shape) == 2
    }
