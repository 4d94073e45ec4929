"""Commands of the paper's protocol: each is run once, so that a call that was stopped goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper.commands import Commands, words_of
from r3agent.run.config import load_config


def test_commands_are_run_once(tmp_path: Path) -> None:
    do, run = Commands(tmp_path / "commands"), tmp_path / "run"
    words = ["init", "--run", run, *words_of({"task.source": "countdown", "eval.controls": ["generic"]})]
    assert do("init", *words) == do("init", *words) == {"config": str(run / "r3.toml")}
    assert load_config(run / "r3.toml", {}).eval.controls == ("generic",)
    with pytest.raises(SystemExit, match="r3agent init ended with exit code 2; the same command goes on there"):
        do("again", *words)  # the run is there already
