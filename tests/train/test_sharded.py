"""Weights in parts: two processes that hold a half of the model each learn what one process learns.

Accelerate offers FSDP on accelerators only. PyTorch's FSDP2 works on a CPU too, so the test lets a copy of accelerate
admit it.
"""

from __future__ import annotations

import shutil
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
"""What `accelerate launch --config_file r3agent/train/accelerate/fsdp2.yaml` puts into the environment."""

ADMITTED = "            elif self.distributed_type in [\n                DistributedType.MULTI_GPU,\n"


@pytest.fixture
def accelerate_on_cpu(tmp_path: Path) -> Path:
    """A directory with an accelerate that admits FSDP on a CPU."""
    copy = tmp_path / "patched"
    shutil.copytree(Path(accelerate.__file__).parent, copy / "accelerate", ignore=shutil.ignore_patterns("*.pyc"))
    state = copy / "accelerate" / "state.py"
    source = state.read_text()
    assert source.count(ADMITTED) == 1, "accelerate decides elsewhere what may be FSDP"
    state.write_text(source.replace(ADMITTED, ADMITTED + "                DistributedType.MULTI_CPU,\n"))
    return copy


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fsdp2_learns_what_one_process_learns(run_dir: Path, accelerate_on_cpu: Path, method: str) -> None:
    whole = trained(run_dir, method=method)
    env = {**FSDP2, "PYTHONPATH": str(accelerate_on_cpu)}
    assert_same(trained(run_dir, method=method, processes=2, distributed="FSDP", extra_env=env), whole)
