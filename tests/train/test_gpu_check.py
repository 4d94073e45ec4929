"""The check on a GPU: what its lines say of parts that ran or had no time, what it compares, and what it installs."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import CASES, SHAPES, Limit, missing, ratios
from benchmarks.gpu_parts import checkpoint, compare_served, recorded
from benchmarks.train_step import rows
from r3agent.train import Row


def test_ratios_are_above_one_where_sharing_is_better() -> None:
    line = ratios({"step_s": 0.5, "peak_mib": 100.0}, {"step_s": 1.0, "peak_mib": 250.0})
    assert (line["time_ratio"], line["memory_ratio"]) == (2.0, 2.5)
    assert ratios({"step_s": 0.5, "peak_mib": 0.0}, {"step_s": 1.0, "peak_mib": 1.0})["memory_ratio"] is None


def test_ratios_are_left_out_if_a_side_did_not_run() -> None:
    side = {"step_s": 0.5, "peak_mib": 100.0}
    assert ratios(side, None) == {"shared": side, "padded": None}


def test_limit_names_what_it_leaves_out() -> None:
    over = Limit(minutes=0)
    assert over.run("700/60/8 shared", ["shared"]) is None
    assert (over.left_out, over.failed) == (["700/60/8 shared: the time was up"], False)


def test_check_fails_if_a_part_fails_and_names_it(tmp_path: Path) -> None:
    (folder := tmp_path / "benchmarks").mkdir()
    shutil.copy(gpu_check.__file__, folder)
    (folder / "gpu_parts.py").write_text("raise SystemExit(3)")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--shape", "tiny"]
    made = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    assert made.returncode == 1
    assert "sample: exit code 3" in json.loads(made.stdout.splitlines()[-1])["left_out"]


def test_served_logprobs_are_compared_on_both_sides(tmp_path: Path) -> None:
    options = argparse.Namespace(shape="tiny", case="8/4/2", groups=2, checkpointing=False)
    options.model, options.file = tmp_path / "model", tmp_path / "recorded.json"
    checkpoint(options)
    made = recorded(options)
    own = {"label": "attempt", "policy_version": "v0000", "truncated": False, "reward": 0.0, "advantage": 1.0}
    served = [
        {**dict.fromkeys(Row._fields), **own, "group_id": str(i // 2), "span_id": str(i), "trajectory_id": str(i)}
        | {"prompt_ids_P": row["prompt"], "completion_ids_T": row["completion"], "logprobs_T": [-1.0] * 4}
        for i, row in enumerate(made)
    ]
    options.file.write_text(json.dumps(served))
    found = compare_served(options)
    assert [*found] == ["shared", "padded"]
    assert found["shared"]["mean"] == pytest.approx(found["padded"]["mean"], rel=0.05)
    assert all(0 < side["ess"] <= 1 for side in found.values())


def test_missing_packages_are_those_of_pips_report() -> None:
    found = [
        {"download_info": {"url": "file:///wheels/trl.whl"}},
        {"download_info": {"url": "file:///wheels/peft.whl"}},
    ]
    assert missing({"install": found}) == ["file:///wheels/trl.whl", "file:///wheels/peft.whl"]
    assert missing({"install": []}) == []


def test_each_shape_has_cases_that_make_rows_of_their_sizes() -> None:
    for shape, sizes in SHAPES.items():
        for case in CASES[shape]:
            prompt, completion, siblings = map(int, case.split("/"))
            made = rows(case, 2, sizes["vocab_size"])
            assert len(made) == 2 * siblings
            assert {(len(row["prompt"]), len(row["completion"])) for row in made} == {(prompt, completion)}
            assert max(max(row["prompt"]) for row in made) < sizes["vocab_size"]


def test_installation_ends_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="packages of no-wheels were not installed in time; pass more --minutes"):
        gpu_check.install("no-wheels", str(tmp_path), Limit(minutes=0))
