"""Commands of the paper's protocol: each is run once, so that a call that was stopped goes on, and all are timed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.paper.commands import Commands, seconds_of, timed
from benchmarks.paper.report import minutes
from benchmarks.paper.settings import words_of
from r3agent.run.config import load_config
from r3agent.store.registry import PolicyCard, create_version, write_card
from tests.support.registries import tiny_registry


def test_commands_are_run_once(tmp_path: Path) -> None:
    do, run = Commands(tmp_path / "commands"), tmp_path / "run"
    words = ["init", "--run", run, *words_of({"task.source": "countdown", "eval.controls": ["generic"]})]
    assert do("init", *words) == do("init", *words) == {"config": str(run / "r3.toml")}
    assert load_config(run / "r3.toml", {}).eval.controls == ("generic",)
    with pytest.raises(SystemExit, match="r3agent init ended with exit code 2; the same command goes on there"):
        do("again", *words)  # the run is there already
    failed_s = seconds_of(do.folder, "again")
    do("again", *words, "--run", tmp_path / "other")
    assert 0 < failed_s < json.loads((do.folder / "again.json").read_text())["seconds"]


def test_duration_is_kept_of_a_call_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "train-1.seconds").write_text("100.0")
    with timed(tmp_path, "train-1", every_s=0.01):
        end = time.monotonic() + 10
        while (so_far_s := seconds_of(tmp_path, "train-1")) == 100 and time.monotonic() < end:
            time.sleep(0.05)
    assert 100 < so_far_s <= seconds_of(tmp_path, "train-1") < 200


def test_minutes_include_trainings_without_a_report(tmp_path: Path) -> None:
    registry, commands = tiny_registry(tmp_path / "run"), tmp_path / "commands"
    commands.mkdir()
    (commands / "collect.json").write_text(json.dumps({"seconds": 60, "report": {}}))
    assert minutes(commands, registry.run_dir) == 1
    card = PolicyCard(version="v0001", name="tiny", kind="lora", base_model="org/tiny", parent="v0000")
    with create_version(registry.version_dir("v0001")) as directory:
        write_card(directory, card.model_copy(update={"metrics": {"seconds": 120.0}}))
    assert minutes(commands, registry.run_dir) == 3
    (commands / "train-1.seconds").write_text("300.0")  # with the calls before the one that ended the training
    assert minutes(commands, registry.run_dir) == 6
    (commands / "train-1.json").write_text(json.dumps({"seconds": 360, "report": {}}))
    assert minutes(commands, registry.run_dir) == 7
