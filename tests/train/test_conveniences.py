"""Conveniences that the trainer takes from its libraries, and its messages to a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

import r3agent.train
from r3agent.errors import ConfigError, TrainingError
from r3agent.records.trajectory import Trajectory
from r3agent.train import PolicyStart, TrainConfig
from r3agent.train.checkpoints import enough_memory
from r3agent.train.remedies import remedies
from r3agent.train.report import progress_line
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]
SHIPPED = Path(r3agent.train.__file__).parent / "accelerate"


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("fsdp2.yaml", DistributedType.FSDP),
        ("deepspeed_zero2.yaml", DistributedType.DEEPSPEED),
    ],
)
def test_shipped_accelerate_configs_are_what_accelerate_reads(file: str, kind: DistributedType) -> None:
    config = load_config_from_file(str(SHIPPED / file))
    assert config.distributed_type == kind
    assert config.mixed_precision == "no"


def test_out_of_memory_names_the_settings_that_need_less() -> None:
    with (
        pytest.raises(
            TrainingError, match=r"out of memory .*lower train.micro_batch_tokens = 77.*checkpointing = true"
        ),
        enough_memory(TrainConfig(micro_batch_tokens=77)),
    ):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="size"), enough_memory(TrainConfig()):
        torch.ones(2) @ torch.ones(3)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_reporter_that_is_not_installed_is_refused(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"report_to = 'wandb': wandb is not installed; pip install wandb"):
        run(record(OUTCOMES), start, tmp_path / "v0001", report_to="wandb")


def test_progress_line_renders_rows_mismatch_and_every_step(record: Record, start: PolicyStart, tmp_path: Path) -> None:
    lines: list[str] = []
    run(
        record([*OUTCOMES, [0, 0]]),
        start,
        tmp_path / "v0001",
        progress=lambda stage, values: lines.append(progress_line(stage, values)),
    )
    assert lines[0] == (
        "8 rows in 3 groups; in 25% of all groups the siblings earned the same; dropped: zero_variance 2; "
        "age in generations: 8 rows 0"
    )
    assert lines[1].startswith("|recorded - recomputed| logprob: all rows mean ")
    assert lines[1].endswith("effective sample size 100% of the tokens; 8 rows scored")
    assert lines[2].startswith("step 1/4, ")
    assert {"reward 0.5,", "ratio 1,", "KL 0,", "clipped 0,"} <= {
        f"{word}," for word in lines[2].split(": ")[1].split(", ")
    }
    assert lines[-1].startswith("directory ")


def test_a_remedy_is_for_this_version_if_anything_is_left_of_it() -> None:
    dropped = {"retry": Counter(stale=2128, retry_alone=1264, no_reward=3), "attempt": Counter(stale=2)}
    found = remedies(("retry", "attempt", "reflect"), {"reflect"}, dropped)
    assert {label: why.partition(":")[0] for label, why in found.items()} == {
        "retry": "retry_alone 1264",
        "attempt": "stale 2",
    }
