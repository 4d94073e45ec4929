"""One loss curve, however the work is divided: `r3agent train` in one process and in two, interrupted and resumed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r3agent._util.wait import wait_until
from r3agent.cli.main import main
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory
from r3agent.run.stages import Run
from r3agent.store.registry import Registry
from r3agent.store.shards import TrajectoryWriter
from tests.support.outage import free_port
from tests.train import recorded
from tests.train.tries import first_tries

Record = Callable[..., list[Trajectory]]

OUTCOMES = [[1, 0], [0, 1, 1], [1, 0, 0], [0, 1], [1, 0, 1, 1, 0]]
SETTINGS = {"method": "full", "learning_rate": 1e-3, "epochs": 4, "batch_size": 5, "beta": 0.1}
PATIENCE_S = 300
"""Limit after which a process counts as hanging, in seconds."""


@pytest.fixture
def run_dir(record: Record, base: Path, tmp_path: Path) -> Path:
    """A run with collected trajectories."""
    directory = tmp_path / "run"
    Registry(directory).add_base("tiny", str(base))  # a run with versions needs no server to train
    Run(directory, {"policy.model": "tiny", "policy.base_model": str(base)}).ensure_live()
    with TrajectoryWriter(directory / "trajectories") as writer:
        for trajectory in record(OUTCOMES):
            writer.append(trajectory.changed(metadata={SOURCE: "", SPLIT: "train"}))
    return directory


def command(run_dir: Path, *flags: str, processes: int = 1, **values: Any) -> list[str]:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        port = f"--master-port={free_port()}"
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", port, "-m", "--"]
    return [*launcher, "r3agent", *arguments(run_dir, *flags, **values)]


def arguments(run_dir: Path, *flags: str, processes: int = 1, **values: Any) -> list[str]:
    settings = [f"--set=train.{key}={value}" for key, value in {**SETTINGS, **values}.items()]
    return ["train", "--run", str(run_dir), "--json", *settings, *flags]


def trained(
    run_dir: Path, *flags: str, distributed: str = "", extra_env: Mapping[str, str] = {}, **values: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], float]:
    """The log of every step, the weights, and the KL to the base.

    One process is this one, several are started by a launcher.
    """
    processes = values.get("processes", 1)
    if processes == 1:
        with redirect_stdout(io.StringIO()) as output:
            assert main(arguments(run_dir, *flags, **values)) == 0
        printed = output.getvalue()
    else:
        env = {**os.environ, **extra_env}
        words = command(run_dir, *flags, **values)
        done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    return result(run_dir, printed, processes, distributed or ("NO" if processes == 1 else "MULTI_CPU"))


def result(
    run_dir: Path, printed: str, processes: int, distributed: str
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], float]:
    """The log of every step, the weights, and the KL to the base of the version whose card was printed."""
    card = json.loads(printed.splitlines()[-1])  # DeepSpeed prints too
    assert card["metrics"]["processes"] == processes
    assert card["metrics"]["distributed"] == distributed
    directory = Registry(run_dir).version_dir(card["version"])
    assert not list(directory.parent.glob("*.checkpoints"))
    log = [json.loads(line) for line in (directory / "steps.jsonl").read_text().splitlines()]
    (weights,) = directory.glob("*/*model.safetensors")
    return log, load_file(weights), card["metrics"]["drift"]["kl"]


def assert_same(one: Any, other: Any) -> None:
    (log, weights, kl), (other_log, other_weights, other_kl) = one, other
    assert kl > 0
    assert kl == pytest.approx(other_kl, rel=0.02)
    assert len(log) == len(other_log) > 10
    for step, other_step in zip(log, other_log, strict=True):
        assert step["loss"] == pytest.approx(other_step["loss"], rel=1e-3, abs=1e-5)
        assert step["grad_norm"] == pytest.approx(other_step["grad_norm"], rel=1e-3)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("processes", "loss_type"), [(1, "grpo"), (2, "dapo")])
def test_an_interrupted_training_resumes_to_the_same_curve(run_dir: Path, processes: int, loss_type: str) -> None:
    whole = trained(run_dir, loss_type=loss_type)
    assert max(abs(step["loss"]) for step in whole[0]) > 1e-3
    assert stopped(run_dir, processes=processes, loss_type=loss_type) != 0
    (growing,) = (run_dir / "policies").glob("*.checkpoints")
    (saved,) = growing.glob("checkpoint-*")
    assert 0 < int(saved.name.removeprefix("checkpoint-")) < len(whole[0])
    assert growing.name.removesuffix(".checkpoints") not in Registry(run_dir).versions()
    values = {"processes": processes, "loss_type": loss_type, "micro_batch_tokens": 100}
    assert_same(trained(run_dir, "--resume", **values), whole)


def test_two_processes_learn_from_tries_what_one_learns(base: Path, tmp_path: Path) -> None:
    """Tries of several steps and rows, in micro-batches of one row and of several."""
    directory = tmp_path / "run"
    Registry(directory).add_base("tiny", str(base))
    Run(directory, {"policy.model": "tiny", "policy.base_model": str(base)}).ensure_live()
    with TrajectoryWriter(directory / "trajectories") as writer:
        for seed in (1, 2, 3):
            for trajectory in first_tries(recorded.load(base), (5, 1, 4, 2), seed):
                writer.append(trajectory.changed(metadata={SOURCE: "", SPLIT: "train"}))
    values = {"credit": '{attempt = "success"}'}
    whole = trained(directory, **values)
    assert max(abs(step["loss"]) for step in whole[0]) > 1e-3
    assert_same(trained(directory, **values, processes=2, micro_batch_tokens=30), whole)


def test_train_on_two_nodes_learns_what_one_process_learns(run_dir: Path) -> None:
    whole = trained(run_dir)
    port, launches = free_port(), []
    for rank in range(2):
        nodes = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        words = [sys.executable, "-m", "torch.distributed.run", *nodes, "-m", "--", "r3agent", *arguments(run_dir)]
        launches.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    printed = [launch.communicate(timeout=PATIENCE_S)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0]
    assert_same(result(run_dir, printed[0], processes=2, distributed="MULTI_CPU"), whole)


def stopped(run_dir: Path, **values: Any) -> int:
    """Terminate a training as soon as it has begun; its exit code."""
    saving = command(run_dir, save_steps=1, **values)
    with subprocess.Popen(saving, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def has_begun() -> bool:
            assert process.poll() is None
            return any((run_dir / "policies").glob("*.checkpoints/rows.sha256"))

        assert wait_until(has_begun, timeout_s=PATIENCE_S, poll_s=0.01)
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=PATIENCE_S)
    if values.get("processes", 1) == 1:
        assert process.returncode == 130
        assert "WARNING: SIGTERM: training stops with a checkpoint after the current step" in messages
        assert re.search(r"interrupted; the same command with --resume goes on from \S+/checkpoint-\d+\n", messages)
    return process.returncode
