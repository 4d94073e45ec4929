"""Merge a LoRA adapter into the weights of its base model, for a server that takes no adapters.

The merged weights are float32: rounded to bfloat16, a sum loses the small changes of an adapter, because each is below
the distance of the weight's neighbours. So a server in bfloat16 loses them when it reads these weights; the fingerprint
tells whether that matters.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError, deserialize

from r3agent._util.files import disk_errors
from r3agent.deploy.weights import in_text_model, read_json
from r3agent.errors import DeployError
from r3agent.store.checkpoint import Checkpoint

if TYPE_CHECKING:
    import numpy

Array: TypeAlias = "numpy.ndarray[Any, numpy.dtype[Any]]"

MERGED_DIR = "merged"
"""Directory in a version's own, while a server reads the merged weights."""
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
OTHER_KINDS = ("use_dora", "alpha_pattern", "rank_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias")
"""Settings of adapters that are more than a product of two matrices with one scale."""
NUMPY_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16"}
ADAPTERS = "start the server with --enable-lora, which takes adapters as they are"


@contextmanager
def whole_weights(checkpoint: Checkpoint) -> Generator[str]:
    """Yield the path of a checkpoint's whole weights; those of an adapter are merged for the time of the block.

    Raises:
        DeployError: the adapter cannot be merged.
        ConfigError: the merged weights cannot be written.
    """
    if checkpoint.adapter_dir is None:
        yield checkpoint.model
        return
    out = checkpoint.adapter_dir.with_name(MERGED_DIR)
    shutil.rmtree(out, ignore_errors=True)  # of a process that was killed
    try:
        merge(Path(checkpoint.model), checkpoint.adapter_dir, out)
        yield str(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def merge(base: Path, adapter_dir: Path, out: Path) -> None:
    """Write a base model's weights, with an adapter added, to a new directory; its own files are unchanged.

    Raises:
        DeployError: the base model is no directory of safetensors files or is quantised, or the adapter is more than
            products of two matrices.
        ConfigError: `out` cannot be written.
    """
    from safetensors.numpy import save_file

    if not base.is_dir() or "quantization_config" in read_json(base / "config.json"):
        raise DeployError(
            f"{base}: an adapter is merged into a directory of weights that are not quantised; {ADAPTERS}"
        )
    scale, products = _products(adapter_dir)
    with disk_errors(out):
        out.mkdir()
        shutil.copy(base / "config.json", out)
        index = base / "model.safetensors.index.json"
        if index.exists():
            shutil.copy(index, out)
        for path in sorted(base.glob("*.safetensors")):
            tensors = _read(path)
            for name in tensors:
                if (pair := products.pop(in_text_model(name), None)) is not None:
                    down, up = pair
                    tensors[name] = tensors[name] + scale * (up @ down)
            save_file(tensors, out / path.name, metadata={"format": "pt"})
    if products:
        raise DeployError(f"{adapter_dir}: {base} has no tensor {next(iter(products))} to merge into; {ADAPTERS}")


def _products(adapter_dir: Path) -> tuple[float, dict[str, tuple[Array, Array]]]:
    """Read an adapter: its scale, and two matrices for each tensor of the base model, in the order of `lora_A`, `B`."""
    config = read_json(adapter_dir / "adapter_config.json")
    if more := [key for key in OTHER_KINDS if config.get(key)] or _biased(config):
        raise DeployError(f"{adapter_dir}: {more[0]} = {config[more[0]]!r} cannot be merged here; {ADAPTERS}")
    tensors: dict[str, Array] = {}
    for path in sorted(adapter_dir.glob("*.safetensors")):
        tensors |= _read(path)
    products = {
        in_text_model(name.removeprefix("base_model.model.").replace(DOWN, ".weight")): (
            down,
            tensors[name.replace(DOWN, UP)],
        )
        for name, down in tensors.items()
        if name.endswith(DOWN)
    }
    if other := [name for name, t in tensors.items() if not name.endswith((DOWN, UP)) or t.ndim != 2]:
        raise DeployError(f"{adapter_dir}: {other[0]} cannot be merged here; {ADAPTERS}")
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank), products


def _biased(config: Mapping[str, Any]) -> list[str]:
    return ["bias"] if config.get("bias", "none") != "none" else []


def _read(path: Path) -> dict[str, Array]:
    """Read the tensors of a file; floating-point ones as float32, which numpy has no other type for than bfloat16."""
    try:
        return {name: _as_float32(tensor) for name, tensor in deserialize(path.read_bytes())}
    except (SafetensorError, OSError, KeyError) as error:
        raise DeployError(f"{path}: {error!r}: its tensors cannot be merged; {ADAPTERS}") from error


def _as_float32(tensor: Mapping[str, Any]) -> Array:
    import numpy as np

    data, shape = tensor["data"], tensor["shape"]
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        bits = np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(data, dtype=NUMPY_TYPES[tensor["dtype"]]).astype(np.float32).reshape(shape)
