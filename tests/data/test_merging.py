"""Merging: nothing of a source is lost unreported, and nothing is there twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from r3agent import ConfigError, Trajectory, label, load
from r3agent.cli.main import main
from r3agent.data import merge
from r3agent.records.trajectory import EpisodeError
from r3agent.store.check import check_store
from r3agent.store.labels import LabelScore, SpanLabel, append_labels
from r3agent.store.parquet import write_lines
from r3agent.store.shards import TrajectoryWriter, shards

from .stores import collected


def write(directory: Path, *episodes: Trajectory) -> None:
    with TrajectoryWriter(directory) as writer:
        for episode in episodes:
            writer.append(episode)


def test_merge_writes_each_episode_once_and_reports_conflicts(tmp_path: Path) -> None:
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    a, b, c = collected(one, "a", "b", "c")
    failed = EpisodeError(kind="EndpointError", message="down")
    write(one, a.changed(trajectory_id="late", error=failed), a.changed(trajectory_id="early"))
    other = b.changed(metadata={"user": "another"})
    late = a.changed(trajectory_id="late", metadata={"from": "two"})
    write(two, a, other, late, a.changed(trajectory_id="early", error=failed), c.changed(trajectory_id="new"))
    with shards(two)[-1].open("ab") as file:
        file.write(b'{"trajectory_id": "torn')
    packed = shards(two)[-1]
    label(two, other, passed=True)
    before = {path: path.read_bytes() for path in [*shards(one), *shards(two)]}
    report = merge([one, two], out)
    assert report.conflicts == (b.trajectory_id,)
    assert (report.episodes, report.copies, report.unreadable) == (6, 2, 1)
    merged = {t.trajectory_id: t for t in load(out)}
    assert merged.keys() == {a.trajectory_id, b.trajectory_id, c.trajectory_id, "late", "early", "new"}
    assert (merged[b.trajectory_id], merged["late"], merged["early"].error) == (b, late, None)
    assert check_store(out).ok
    assert (report.labels, check_store(out).unknown_labels) == (0, ())
    assert before == {path: path.read_bytes() for path in before}
    write_lines(packed.with_suffix(".parquet"), packed.read_bytes().splitlines()[:-1])
    packed.unlink()
    assert merge([two, one], tmp_path / "again").conflicts == (b.trajectory_id,)
    (labelled,) = [t for t in load(tmp_path / "again") if t.trajectory_id == b.trajectory_id]
    assert (labelled.metadata, labelled.passed) == (other.metadata, True)


def test_merge_keeps_the_last_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (a,) = collected(one, "a")
    write(two, a)
    place = {"trajectory_id": a.trajectory_id, "span_id": a.spans[-1].span_id}
    last = SpanLabel(**place, passed=True, by="second", labelled_at="2026-01-02T00:00:00+00:00")
    score = LabelScore(**place, by="second", labelled_at=last.labelled_at, score=0.75)
    append_labels(one, [last], [score])
    append_labels(two, [SpanLabel(**place, passed=False, by="first", labelled_at="2026-01-01T00:00:00+00:00")])
    report = merge([one, two], tmp_path / "out")
    assert report.labels == 2
    (merged,) = load(tmp_path / "out")
    verdict = merged.spans[-1].verdict
    assert verdict is not None
    assert (verdict.by, verdict.passed, verdict.score) == ("second", True, 0.75)
    assert main(["data", "merge", str(one), str(two), "--out", str(tmp_path / "verb")]) == 0
    assert "has 1 episode and 2 labels" in capsys.readouterr().out


def test_merge_refuses_what_it_cannot_merge(tmp_path: Path) -> None:
    collected(tmp_path / "one", "a")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="at least two stores"):
        merge([tmp_path / "one"], tmp_path / "new")
    with pytest.raises(ConfigError, match="named twice"):
        merge([tmp_path / "one", tmp_path / "one"], tmp_path / "new")
    with pytest.raises(ConfigError, match="there is no such directory"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "new")
    collected(tmp_path / "two", "b")
    with pytest.raises(ConfigError, match="exists"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "two"]
