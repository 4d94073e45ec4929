"""The check on a GPU: what its lines say of parts that ran or had no time, and what it installs."""

from __future__ import annotations

from benchmarks.gpu_check import CASES, SHAPES, Limit, missing, ratios
from benchmarks.train_step import rows


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
    assert over.left_out == ["700/60/8 shared: the time was up"]


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
