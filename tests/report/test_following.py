"""A reader that follows a run shows what a new one shows, and reads only what was added."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent import label, load
from r3agent._util.files import write_atomically
from r3agent.report.browser import CHUNK, Browser
from r3agent.report.encoding import unpacked
from r3agent.report.gather import Content, RunReader, gather
from r3agent.store.shards import TrajectoryWriter
from tests.report.runs import episode, store


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(run_dir, tmp_path / "run")
    return tmp_path / "run"


def bodies(browser: Browser) -> dict[str, Any]:
    return {body["id"]: body for chunk in browser.chunks() for body in orjson.loads(unpacked(chunk))}


def shown(content: Content) -> dict[str, Any]:
    """Return all that a page shows, in an order of its own."""
    facts, browser = content
    index: dict[str, Any] = browser.index()
    names = index["names"]
    rows = {
        id_: {n: names[n][column[i]] if n in names else column[i] for n, column in index["columns"].items()}
        for i, id_ in enumerate(index["columns"]["id"])
    }
    texts = [text for _, part in browser.texts() for text in part]
    return {
        "facts": {k: v for k, v in facts.items() if k not in ("made_at", "spending", "notes")},
        "spending": {(s["store"], s["version"]): {**s, "cost": pytest.approx(s["cost"])} for s in facts["spending"]},
        "rows": rows,
        "texts": dict(zip(index["columns"]["id"], texts, strict=True)),
        "bodies": bodies(browser),
    }


def add_rows(run: Path) -> None:
    rows = [[t.trajectory_id, t.spans[1].span_id, "reflect"] for t in load(run) if len(t.spans) > 1]
    folder = run / "policies" / "v0002"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows[:3]))


def add_labels(run: Path) -> None:
    for passed in (False, True):
        label(run, "f00dfeed", passed=passed, by="anna")
    label(run / "gate" / "v0001" / "v0001", load(run / "gate" / "v0001" / "v0001")[0], passed=False)


def add_again(run: Path) -> None:
    """Store an episode that went on, and one of a new version beside its siblings."""
    first = load(run)[0]
    store(
        run / "trajectories", first.changed(metadata={**first.metadata, "more": 1}), episode("train-0", "v0001", True)
    )


def add_store(run: Path) -> None:
    store(run / "eval" / "v0001", episode("test-0", "v0001", False, True))


def change_settings(run: Path) -> None:
    file = run / "r3.toml"
    file.write_text(file.read_text().replace("sampled = 2.0", "sampled = 4.0"))


def write_anew(run: Path) -> None:
    shard = run / "trajectories" / "00000.jsonl"
    write_atomically(shard, b"".join(shard.read_bytes().splitlines(keepends=True)[1:]))


def remove_store(run: Path) -> None:
    shutil.rmtree(run / "eval")


CHANGES: list[Callable[[Path], None]] = [
    add_rows,
    add_labels,
    add_again,
    add_store,
    change_settings,
    write_anew,
    remove_store,
]


def test_reader_shows_what_a_new_one_shows(run: Path) -> None:
    reader = RunReader(run, keep=True)
    reader.read()
    with TrajectoryWriter(run / "trajectories") as writer:  # the same shard grows all the time
        for number, change in enumerate(CHANGES):
            writer.append(episode(f"train-{number % 3}", "v0001", False, True, sample=10_000 + number))
            change(run)
            found = reader.read()
            assert shown(found) == shown(gather(run)), number


def test_reader_reads_no_shard_again_that_did_not_grow(run: Path) -> None:
    reader = RunReader(run, keep=True)
    before = reader.read()
    n_before, revision = before.facts["episodes"], before.browser.revision
    for shard in run.glob("gate/v0001/v0000/*.jsonl"):
        with shard.open("r+b") as file:
            file.write(b"x" * 1000)  # in place: nobody does that
    store(run / "trajectories", episode("new", "v0001", True))
    after = reader.read()
    assert (after.facts["episodes"], after.facts["notes"]) == (n_before + 1, before.facts["notes"])
    assert after.browser.revision == revision + 1


def test_browser_marks_only_the_chunks_that_changed() -> None:
    browser, long = Browser(), "x" * (CHUNK // 4)
    made = [episode(f"task-{i}", "v0001", True) for i in range(12)]
    for trajectory in made:
        browser.put("trajectories", trajectory, {"id": trajectory.trajectory_id, "text": long})
    assert [len(texts) for _, texts in browser.texts()] == [4, 4, 4]
    whole = browser.chunks()
    browser.revision = 2
    browser.put("trajectories", made[5], {"id": made[5].trajectory_id, "big": 2**70})
    browser.put("trajectories", episode("more", "v0001", True), {"id": "more"})
    assert [mark for mark, _ in browser.texts()] == [1, 2, 1, 2]
    changed = browser.chunks()
    assert (changed[0], changed[2]) == (whole[0], whole[2])
    assert f'"big":{2**70}' in unpacked(changed[1])
    assert len(browser) == 13
    assert browser.ids > {t.trajectory_id for t in made}


def test_reader_lists_an_even_sample_of_a_run_that_grows(run: Path) -> None:
    reader = RunReader(run, limit=60, keep=True)
    assert 40 < reader.read().facts["listed"] < 80
    store(run / "trajectories", *(episode(f"more-{i}", "v0001", True) for i in range(200)))
    found = reader.read()
    assert found.facts["episodes"] == 293
    assert 30 < found.facts["listed"] < 90
    assert shown(found) == shown(gather(run, limit=60))


@pytest.mark.parametrize(
    ("settings", "advantages"),
    [
        ("", {0.71, -0.71}),
        ("credit_weights = {reflect = 2.0}\n", {1.41, -1.41}),
        ("scale_rewards = 'none'\n", {0.5, -0.5}),
        ("scale_rewards = 'batch'\n", {None}),
        ("baseline = 'batch'\n", {None}),
    ],
)
def test_advantages_are_those_of_a_training_if_siblings_decide_them(
    run: Path, settings: str, advantages: set[float | None]
) -> None:
    with (run / "r3.toml").open("a") as file:
        file.write(f"[train]\n{settings}")
    spans = [span for body in bodies(gather(run).browser).values() for span in body["spans"]]
    credited = [span for span in spans if span["label"] == "reflect" and span.get("of") == 2]
    assert {span["reward"] for span in credited} == {0.0, 1.0}
    assert {span.get("advantage") and round(span["advantage"], 2) for span in credited} == advantages
