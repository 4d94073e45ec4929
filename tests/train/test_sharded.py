"""Weights, gradients or the optimizer in parts: two processes that share them learn what one process learns.

Accelerate offers FSDP and DeepSpeed on accelerators only. Both work on a CPU too, so the tests let a copy of accelerate
admit them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import accelerate
import pytest

from tests.train.test_command_line import assert_same, run_dir, trained

__all__ = ["run_dir"]

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""The environment made by `accelerate launch --config_file r3agent/train/accelerate/fsdp2.yaml`."""

ZERO2 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "DS_ACCELERATOR": "cpu",
    "TORCH_EXTENSIONS_DIR": f"{sys.prefix}/torch-extensions",  # compiled once, for a minute
}
"""The environment made for `deepspeed_zero2.yaml`, and the directory to compile in."""

DEEPSPEED = Path(os.environ.get("R3AGENT_DEEPSPEED", f"{sys.prefix}/deepspeed"))
"""It has a place of its own, because transformers and accelerate do otherwise where they find it."""

FSDP_ON = "            elif self.distributed_type in [\n                DistributedType.MULTI_GPU,\n"
GLOO_ON = "            distributed_type is None\n            and cpu\n"


@pytest.fixture(scope="module")
def accelerate_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an accelerate that admits FSDP and DeepSpeed on a CPU."""
    copy = tmp_path_factory.mktemp("patched")
    shutil.copytree(Path(accelerate.__file__).parent, copy / "accelerate", ignore=shutil.ignore_patterns("*.pyc"))
    state = copy / "accelerate" / "state.py"
    source = state.read_text()
    assert source.count(FSDP_ON) == source.count(GLOO_ON) == 1, "accelerate decides elsewhere what runs on a CPU"
    source = source.replace(FSDP_ON, FSDP_ON + "                DistributedType.MULTI_CPU,\n")
    state.write_text(source.replace(GLOO_ON, "            distributed_type is None\n"))
    return copy


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fsdp2_learns_what_one_process_learns(run_dir: Path, accelerate_on_cpu: Path, method: str) -> None:
    whole = trained(run_dir, method=method)
    env = {**FSDP2, "PYTHONPATH": str(accelerate_on_cpu)}
    assert_same(trained(run_dir, method=method, processes=2, distributed="FSDP", extra_env=env), whole)


@pytest.mark.skipif(
    not (DEEPSPEED / "deepspeed").is_dir(),
    reason=f"{DEEPSPEED} has no DeepSpeed: `make test` installs it, R3AGENT_DEEPSPEED names another place",
)
def test_deepspeed_zero2_learns_what_one_process_learns(run_dir: Path, accelerate_on_cpu: Path) -> None:
    whole = trained(run_dir, method="lora")
    env = {**ZERO2, "PYTHONPATH": f"{accelerate_on_cpu}{os.pathsep}{DEEPSPEED}"}
    assert_same(trained(run_dir, method="lora", processes=2, distributed="DEEPSPEED", extra_env=env), whole)
