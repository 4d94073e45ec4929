"""Machines as people have them: leftovers of launchers, several GPUs, ASCII terminals, read-only caches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r3agent._util.launcher import launched_rank, without_leftovers
from r3agent.cli.main import main
from r3agent.errors import ConfigError
from r3agent.records.trajectory import SOURCE, SPLIT, Trajectory
from r3agent.run.loop import run_loop
from r3agent.run.stages import Run
from r3agent.store.registry import Registry
from r3agent.store.shards import TrajectoryWriter
from r3agent.telemetry.services import check_service
from r3agent.train import PolicyStart
from r3agent.train.arguments import OneDevice
from r3agent.train.processes import notice_of_devices
from tests.support.services import REPORTERS, needs_services
from tests.train.versions import OUTCOMES, run

Record = Callable[..., list[Trajectory]]
OF_TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LEFTOVERS = [
    {"RANK": "3", "LOCAL_RANK": "3"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"},
    {**OF_TORCHRUN, "RANK": "2"},
    {**OF_TORCHRUN, "LOCAL_RANK": "none"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "1"},
    {"ACCELERATE_MIXED_PRECISION": "fp16"},
]


@pytest.fixture
def run_dir(record: Record, base: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    Registry(directory).add_base("tiny", str(base))
    settings = {"policy.model": "tiny", "policy.base_model": str(base), "eval.n": 4, "task.source": "countdown"}
    Run(directory, settings).ensure_live()
    with TrajectoryWriter(directory / "trajectories") as writer:
        for trajectory in record(OUTCOMES):
            writer.append(trajectory.changed(metadata={SOURCE: "countdown", SPLIT: "train"}))
    return directory


@pytest.mark.parametrize("leftover", LEFTOVERS, ids=lambda leftover: ",".join(leftover))
def test_leftovers_of_a_launcher_are_named_and_ignored(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    leftover: dict[str, str],
) -> None:
    for name, value in leftover.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() is None
    fast = [f"--set=train.{setting}" for setting in ("learning_rate=1e-2", "lora_r=4", "epochs=1")]
    assert main(["train", "--run", str(run_dir), *fast]) == 0
    assert "v0001 trained from v0000" in capsys.readouterr().out
    assert "ignored, because no launcher started this process" in caplog.text
    assert all(name in caplog.text and os.environ[name] == value for name, value in leftover.items())
    assert main(["train", "--run", str(run_dir / "nowhere")]) == 2
    assert "there is no such run" in capsys.readouterr().err


def test_variables_of_a_launcher_are_left_to_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launched_rank() == 1
    for name, value in {"RANK": "-1", "MASTER_PORT": "", "WORLD_SIZE": "1", "LOCAL_RANK": "none"}.items():
        with pytest.MonkeyPatch.context() as context:
            context.setenv(name, value)
            assert launched_rank() is None
    with without_leftovers():
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_one_process_trains_on_one_of_several_gpus(tmp_path: Path) -> None:
    arguments = OneDevice(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    vars(arguments)["_n_gpu"] = 2  # what transformers counts
    assert arguments.n_gpu == 1
    assert notice_of_devices(1) is None
    assert "2 GPUs are visible" in (notice_of_devices(2) or "")
    assert "torchrun --nproc-per-node 2" in (notice_of_devices(2) or "")


def test_wandb_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="report_to = 'wandb': wandb is not installed"):
        check_service("wandb")
    (tmp_path / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no API key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE"):
        check_service("wandb")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    check_service("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    with pytest.raises(ConfigError, match="no API key"):
        check_service("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_service("wandb")


def test_loop_finds_what_training_lacks_before_it_collects(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report_to = 'wandb': wandb is not installed"):
        run_loop(Run(run_dir, {"train.report_to": "wandb"}), NoReport())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    Registry(tmp_path / "other").add_base("tiny", str(adapter))
    settings = {"policy.model": "tiny", "policy.base_model": str(adapter), "eval.n": 4, "task.source": "countdown"}
    with pytest.raises(ConfigError, match="is a LoRA adapter"):
        run_loop(Run(tmp_path / "other", settings), NoReport())


class NoReport:
    """Reporter of a loop that must end before it collects."""

    def stage(self, text: str, kind: str = "") -> None:
        assert text.startswith("loading torch")

    def episodes(self, done: int, total: int) -> None: ...

    def steps(self, done: int, total: int) -> None: ...


@needs_services
def test_tensorboard_gets_the_steps_of_a_training_without_a_run(
    record: Record, start: PolicyStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPORTERS)])
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run(record(OUTCOMES), start, tmp_path / "policies" / "v0001", report_to="tensorboard", epochs=1)
    [events] = (tmp_path / "policies" / "tensorboard" / "v0001").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert Registry(tmp_path).versions() == ["v0001"]


def test_commands_speak_on_an_ascii_terminal(run_dir: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    nowhere = dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR"), "/dev/null/none")
    env = {**os.environ, **ascii_only, **nowhere}
    words = ["train", "--run", str(run_dir), "--set=train.epochs=1"]
    done = subprocess.run([sys.executable, "-m", "r3agent", *words], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert "v0001 trained from v0000" in done.stdout.decode("ascii")
    wrong = subprocess.run([sys.executable, "-m", "r3agent", "inspect", "pfad-ü"], capture_output=True, env=env)
    assert wrong.returncode == 2
    assert "pfad-" in wrong.stderr.decode("ascii")
    assert b"Traceback" not in wrong.stderr


def test_train_names_an_unusable_optimisation_of_python() -> None:
    code = "import r3agent.train as t; t.train"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert "ConfigError: PYTHONOPTIMIZE = 2" in done.stderr
