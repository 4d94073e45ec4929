"""Reports of versions, by the functions and the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from r3agent import ConfigError, RecordError, label
from r3agent.cards import check_version, describe, diff_versions, list_versions
from r3agent.cli.main import main
from r3agent.data import forget
from r3agent.store.history import Event, history, record_event


def test_describe_has_what_training_and_evaluation_wrote(made: Path) -> None:
    report = describe(made, "v0001")
    assert (report.version, report.parent, report.kind, report.live, report.passed) == (
        "v0001",
        "v0000",
        "lora",
        False,
        False,
    )
    assert report.episodes is not None
    assert [episode.id for episode in report.episodes] == ["e0", "e1", "e2"]
    assert all(len(episode.sha256 or "") == 64 for episode in report.episodes)
    assert report.provenance is not None
    assert {"python", "r3agent", "torch", "transformers", "trl", "peft"} == report.provenance.packages.keys()
    assert "adapter/adapter_model.safetensors" in report.provenance.weights
    assert report.fingerprint_tokens > 0
    (evaluation,) = report.evaluations
    assert (evaluation.baseline, evaluation.purpose, evaluation.split) == ("v0000", "gate", "gate")
    assert evaluation.at is not None
    assert evaluation.rates["after_reflection"].rate == 0.75
    assert evaluation.differences["after_reflection"].points == pytest.approx(50)
    assert [event.event for event in report.history] == ["evaluated"]
    assert [one.version for one in list_versions(made)] == ["v0000", "v0001", "v0002"]
    with pytest.raises(ConfigError, match="'v0009'"):
        describe(made, "v0009")


def test_check_finds_changed_weights_and_episodes(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    assert check_version(run, "v0001").ok
    label(run, "e1", passed=True)
    forget(run, episodes=["e2"])
    weights = run / "policies/v0001/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"none")
    found = check_version(run, "v0001")
    assert found.weights_changed == ("adapter/adapter_model.safetensors",)
    assert (found.episodes_changed, found.episodes_missing) == (("e1",), ())
    forgotten = {e.id: (e.sha256 is None, e.forgotten) for e in describe(run, "v0001").episodes or ()}
    assert forgotten == {"e0": (False, False), "e1": (False, False), "e2": (True, True)}
    with pytest.raises(RecordError, match="v0000 has no hashes"):
        check_version(run, "v0000")


def test_damaged_hashes_of_episodes_are_an_error(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    for damaged in ('["e0", "ab"]\n["e1', '["e0"]\n', "7\n"):
        (run / "policies/v0001/episodes.jsonl").write_text(damaged)
        with pytest.raises(RecordError, match=r"episodes\.jsonl has no ids with hashes"):
            check_version(run, "v0001")


def test_diff_names_settings_episodes_and_rates(made: Path) -> None:
    diff = diff_versions(made, "v0001", "v0002")
    assert diff.changed["settings.method"] == diff.changed["kind"] == ("lora", "full")
    assert diff.changed["gate.gate.after_reflection"] == (0.75, None)
    assert (diff.episodes_of_both, diff.episodes_only) == (2, (1, 0))
    assert not any(key.startswith("packages.") for key in diff.changed)
    (comparison,) = diff_versions(made, "v0001", "v0000").comparisons
    assert comparison.file == "gate/v0001/v0000-v0001.gate.abc.json"


def test_policies_prints_text_and_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def output(*words: str, run: Path = made) -> str:
        assert main(["policies", *words, "--run", str(run)]) == 0
        return capsys.readouterr().out

    assert "after reflection +50.0 points" in output("list")
    shown = output("show", "v0001", "--check")
    assert "v0001: lora from v0000" in shown
    assert re.search(r"v0001 against v0000 on 20 tasks of the gate split \(20\S+, gate/\S+\.abc\.json\):\n", shown)
    assert "first try" in shown
    assert re.search(r"served as +\S+@v0001\n", shown)
    assert "weights and episodes are as they were trained\n" in shown
    run = Path(shutil.copytree(made, tmp_path / "run"))
    forget(run, episodes=["e2"])
    assert "as they were trained; 1 episode was forgotten since" in output("show", "v0001", "--check", run=run)
    short, whole = output("diff", "v0001", "v0002"), output("diff", "v0001", "v0002", "--all")
    assert re.match(r"v0001 and v0002 differ in [1-9] facts?, [1-9]", short)
    assert "settings.method" in short
    assert len(short) <= len(whole)
    assert json.loads(output("show", "v0001", "--json"))["kind"] == "lora"
    assert len(json.loads(output("list", "--json"))["versions"]) == 3
    assert json.loads(output("diff", "v0001", "v0002", "--json"))["changed"]["kind"] == ["lora", "full"]


def test_history_keeps_events_after_a_torn_line(tmp_path: Path) -> None:
    record_event(tmp_path, Event(event="deployed", version="v0001", by="anna", reasons=("better",)))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"event": "depl')
    record_event(tmp_path, Event(event="rolled_back", version="v0000", other="v0001", by="person"))
    assert [(event.event, event.by) for event in history(tmp_path)] == [("deployed", "anna"), ("rolled_back", "person")]
    assert [event.version for event in history(tmp_path, "v0000")] == ["v0000"]
