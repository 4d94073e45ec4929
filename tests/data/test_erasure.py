"""Forgetting: nothing of an episode stays in any file, nothing of another one changes, and a crash loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from r3agent import BusyError, ConfigError, Trajectory, label, load
from r3agent._util.lock import file_lock
from r3agent.cli.main import main
from r3agent.data import compact, forget
from r3agent.data.receipts import FOLDER, receipts
from r3agent.store.check import check_store
from r3agent.store.labels import labels_path
from r3agent.store.parquet import read_lines, write_lines
from r3agent.store.registry import MAX_PROMPT, FingerprintSequence, PolicyCard, Registry, create_version, write_card
from r3agent.store.shards import COLLECT_LOCK, TrajectoryWriter, shards
from r3agent.train.lineage import ROWS_FILE

from .stores import collected


def prompt_end(trajectory: Trajectory) -> tuple[int, ...]:
    return (trajectory.spans[1].prompt_token_ids or ())[-MAX_PROMPT:]


def run_of(directory: Path) -> list[Trajectory]:
    """A run with three users' episodes, an evaluation, labels, a branch, a repaired file and a trained version."""
    (directory / "r3.toml").touch()
    (directory / "report.html").write_text("<p>what anna asked, and bert</p>")
    store = directory / "trajectories"
    episodes = collected(store, "anna", "bert", "carl")
    anna = episodes[0]
    with TrajectoryWriter(store) as writer:
        writer.append(anna.changed(trajectory_id="branch", parent_id=anna.trajectory_id, metadata={}))
    for each in episodes:
        label(store, each, passed=False, feedback=f"{each.metadata['user']} sent it back", by="me")
    first = shards(store)[0]
    with first.open("ab") as file:
        file.write(b'{"trajectory_id":"torn","metadata":{"user":"anna"},"task":{"mess\n')
    check_store(store, repair=True)
    collected(directory / "eval" / "v0000", "anna", "bert")
    registry = Registry(directory)
    prints: list[FingerprintSequence] = []
    for each in episodes[:2]:
        tokens = prompt_end(each) + (each.spans[1].token_ids or ())
        prints.append(FingerprintSequence(token_ids_T=tokens, logprobs_T=(0.0,) * len(tokens)))
    card = PolicyCard(version="v0001", name="m", kind="lora", base_model="b", fingerprint=tuple(prints))
    with create_version(registry.version_dir("v0001")) as folder:
        rows = [orjson.dumps([t.trajectory_id, t.spans[1].span_id, "reflect"]) + b"\n" for t in episodes[:2]]
        (folder / ROWS_FILE).write_bytes(b"".join(rows))
        write_card(folder, card)
    return episodes


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def lines_of_others(directory: Path, *gone: str) -> list[bytes]:
    lines = [line for path in shards(directory) for line in path.read_bytes().splitlines()]
    return [line for line in lines if not any(text.encode() in line for text in gone)]


def test_forget_leaves_nothing_of_a_user_and_all_of_others(tmp_path: Path) -> None:
    anna, bert, _ = run_of(tmp_path)
    store = tmp_path / "trajectories"
    kept = lines_of_others(store, "anna")
    hashes = {str(path): hashlib.sha256(content).hexdigest() for path, content in contents(tmp_path).items()}
    receipt = forget(tmp_path, where="user=anna")
    evaluated = {t.trajectory_id for t in collected(tmp_path / "eval" / "v0000", "bert")}
    assert {anna.trajectory_id, "branch"} <= {*receipt.episodes}
    assert not evaluated & {*receipt.episodes}
    left = contents(tmp_path)
    assert [path for path, content in left.items() if b"anna" in content] == []
    assert [line for path in shards(store) for line in path.read_bytes().splitlines()] == kept
    assert {t.metadata["user"]: t.attempt and t.attempt.passed for t in load(store)} == {"bert": False, "carl": False}
    assert b"bert sent it back" in labels_path(store).read_bytes()
    assert receipt.trained == {"v0001": (anna.trajectory_id,)}
    rows = (tmp_path / "policies" / "v0001" / ROWS_FILE).read_bytes()
    assert [orjson.loads(line)[0] for line in rows.splitlines()] == [bert.trajectory_id]
    (sequence,) = Registry(tmp_path).card("v0001").fingerprint
    assert sequence.token_ids_T[:MAX_PROMPT] == prompt_end(bert)
    for file in receipt.files:
        assert file.sha256_before == hashes[file.path]
        assert file.sha256_after == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
    assert [*receipts(tmp_path)] == [receipt]
    assert receipt.selection_sha256 == hashlib.sha256(b"user=anna").hexdigest()


@pytest.mark.parametrize("secret", ["Zoë", "4929 1234", 'say "x\\y"'])
def test_forget_finds_a_pattern_in_every_text(tmp_path: Path, secret: str) -> None:
    (a, b, c) = collected(tmp_path, "a", "b", "c")
    called = a.spans[0].model_copy(
        update={"tool_calls": ({"id": "1", "function": {"name": "f", "arguments": json.dumps({"to": secret})}},)}
    )
    with TrajectoryWriter(tmp_path) as writer:
        writer.append(a.changed(trajectory_id="in-arguments", spans=(called,)))
        writer.append(a.changed(trajectory_id="in-metadata", metadata={"notes": [{"deep": f"of {secret}!"}]}))
        writer.append(a.changed(trajectory_id="in-a-text", spans=(a.spans[0].model_copy(update={"text": secret}),)))
    label(tmp_path, b, passed=True, feedback=f"as {secret} wants it")
    receipt = forget(tmp_path, pattern=re.escape(secret))
    assert {*receipt.episodes} == {"in-arguments", "in-metadata", "in-a-text", b.trajectory_id}
    assert {t.trajectory_id for t in load(tmp_path)} == {a.trajectory_id, c.trajectory_id}
    stored = (tmp_path / FOLDER / f"{receipt.receipt_id}.json").read_text()
    assert json.dumps(secret)[1:-1] not in stored
    assert secret not in stored


CRASH = """
import os, sys
from pathlib import Path
from r3agent.data import forget
left = int(sys.argv[2])
replace = os.replace
def killed(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    replace(*args)
os.replace = killed
forget(sys.argv[1], where="user=anna")
"""


def test_forget_goes_on_after_a_kill_at_any_rename(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for n_renames in range(0, 100, 3):
        run = tmp_path / f"run-{n_renames}"
        run.mkdir()
        run_of(run)
        kept = lines_of_others(run / "trajectories", "anna")
        killed = subprocess.run([sys.executable, "-c", CRASH, str(run), str(n_renames)], check=False)
        assert lines_of_others(run / "trajectories", "anna") == kept
        if killed.returncode == 0:
            break
        (bert,) = [t for t in load(run) if t.metadata.get("user") == "bert"]
        forget(run, episodes=[bert.trajectory_id])
        assert len([*receipts(run)]) == 1 + (n_renames > 0)
        assert all(one.finished_at for one in receipts(run))
        if not n_renames:  # nothing was begun
            forget(run, where="user=anna")
        assert [path for path, content in contents(run).items() if b"anna" in content] == []
        assert [t.metadata["user"] for t in load(run)] == ["carl"]
        assert [*run.rglob(".forget.*")] == []
    assert n_renames > 8


def test_forget_refuses_a_file_that_is_written(tmp_path: Path) -> None:
    collected(tmp_path, "anna", "bert")
    with TrajectoryWriter(tmp_path) as writer:
        (anna,) = [t for t in load(tmp_path) if t.metadata["user"] == "anna"]
        writer.append(anna.changed(trajectory_id="open"))
        before = contents(tmp_path)
        with pytest.raises(BusyError, match="another process writes it"):
            forget(tmp_path, where="user=anna")
        assert {path: c for path, c in contents(tmp_path).items() if path.name != ".lock"} == before
        assert forget(tmp_path, where="user=bert").episodes  # the open file has nothing of it
        writer.append(anna.changed(trajectory_id="later"))
    assert len(forget(tmp_path, where="user=anna").episodes) == 3
    assert load(tmp_path) == []


def test_forget_and_compact_refuse_a_run_that_collects(tmp_path: Path) -> None:
    run_of(tmp_path)
    with file_lock(tmp_path / COLLECT_LOCK, "collecting"):
        for refused in (lambda: forget(tmp_path, where="user=anna"), lambda: compact(tmp_path)):
            with pytest.raises(BusyError, match="collecting"):
                refused()
    assert forget(tmp_path, where="user=anna").episodes


def test_forget_takes_the_episode_of_an_id_or_its_beginning(tmp_path: Path) -> None:
    a = collected(tmp_path, "a")[0]
    with TrajectoryWriter(tmp_path) as writer:
        for id_ in ("e1", "e10", "e11"):
            writer.append(a.changed(trajectory_id=id_, metadata={"episode": f"call-{id_}"}))
    assert forget(tmp_path, episodes=["e1"]).episodes == ("e1",)  # not those that begin with it
    with pytest.raises(ConfigError, match="'e1': the beginning of 2 ids"):
        forget(tmp_path, episodes=["e1"])
    assert forget(tmp_path, episodes=["e10", "call-e11"]).episodes == ("e10", "e11")
    with pytest.raises(ConfigError, match="'e12': not an episode of"):
        forget(tmp_path, episodes=["e12"])
    assert [t.trajectory_id for t in load(tmp_path)] == [a.trajectory_id]


def test_forget_rewrites_parquet(tmp_path: Path) -> None:
    collected(tmp_path, "anna", "bert")
    (shard, other) = shards(tmp_path)
    packed = shard.with_suffix(".parquet")
    write_lines(packed, [*shard.read_bytes().splitlines(), *other.read_bytes().splitlines()])
    for path in (shard, other):
        path.unlink()
    (tmp_path / "00000.parquet.bak").write_bytes(packed.read_bytes())
    receipt = forget(tmp_path, where="user=anna")
    assert [file.lines for file in receipt.files] == [1, 1]
    assert [t.metadata["user"] for t in load(tmp_path, strict=True)] == ["bert"]
    assert not any(b"anna" in line for line in read_lines(packed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the three"),
        ({"where": "user=a", "pattern": "a"}, "one of the three"),
        ({"episodes": [""]}, "one of the three"),
        ({"where": "user"}, "no KEY=VALUE"),
        ({"pattern": "("}, "regular expression"),
        ({"pattern": "a*"}, "found in every text"),
    ],
)
def test_forget_refuses_a_request_without_a_limit(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    collected(tmp_path, "a")
    with pytest.raises(ConfigError, match=message):
        forget(tmp_path, **arguments)


def test_forget_verb_reports_and_dry_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(tmp_path)
    before = contents(tmp_path)
    assert main(["data", "forget", str(tmp_path), "--where", "user=anna", "--dry-run"]) == 0
    assert contents(tmp_path) == before
    assert "2 episodes would be forgotten" in capsys.readouterr().out
    assert main(["data", "forget", str(tmp_path / "trajectories"), "--where", "user=anna"]) == 0
    text = capsys.readouterr().out
    assert "v0001 was trained on 1 of them" in text
    assert "weights do not forget" in text
    assert main(["data", "forget", str(tmp_path), "--where", "user=anna", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == []
    for words in (["--where", "user=nobody"], ["--pattern", "nobody"]):
        assert main(["data", "forget", str(tmp_path), *words]) == 0
        assert re.match(r"nothing has .*nobody'?: 0 episodes are forgotten", capsys.readouterr().out)
    assert main(["data", "forget", str(tmp_path), "--where", "usr=bert"]) == 2
    says = capsys.readouterr().err
    assert says.startswith("r3agent data forget: where: no episode of")
    assert "'usr'; did you mean 'user'? known are user\n" in says
    with pytest.raises(ConfigError, match=r"the key 'user\.name'; did you mean"):
        forget(tmp_path, where="user.name=bert")
    assert len([*receipts(tmp_path)]) == 1
    link = tmp_path / "elsewhere.jsonl"
    os.replace(shards(tmp_path)[0], link)
    (tmp_path / "trajectories" / link.name).symlink_to(link)
    assert main(["data", "forget", str(tmp_path), "--where", "user=bert"]) == 0
    assert b"bert" not in link.read_bytes()
    forget(tmp_path, where="user=carl")
    assert forget(tmp_path, where="user=carl").episodes == ()  # no episode is left that has the key
