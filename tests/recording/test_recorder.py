"""Recording in production: what a request may not feel, what many workers may not tear, what may not be kept."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3agent import Recorder, Span, Trajectory, load
from r3agent.errors import ConfigError
from r3agent.recording.redaction import redact_trajectory
from r3agent.records.trajectory import LINE_CHECKSUM, Task
from r3agent.store.shards import shards
from tests.support.trees import span, trajectories, tree

EXACT: dict[str, Any] = {
    "prompt_token_ids": (1, 2),
    "token_ids": (3,),
    "logprobs": (-0.5,),
    "capability": "trainable-exact",
}


def numbered(n: int) -> list[Trajectory]:
    return [tree(span("attempt", passed=True, text=f"{i}")) for i in range(n)]


def test_recorder_stores_records_and_the_graphs_json(tmp_path: Path) -> None:
    one, other = numbered(2)
    with Recorder(tmp_path) as recorder:
        recorder.record(one)
        recorder.record(other.model_dump(mode="json"))
    assert load(tmp_path) == [one, other]
    assert recorder.counts == (2, 0, 0, 0)
    assert len(shards(tmp_path)) == 1


def test_without_a_trajectory_there_is_no_shard(tmp_path: Path) -> None:
    with Recorder(tmp_path):
        pass
    assert shards(tmp_path) == []


def test_flush_leaves_the_recorder_open(tmp_path: Path) -> None:
    one, other = numbered(2)
    with Recorder(tmp_path) as recorder:
        recorder.record(one)
        assert recorder.flush()
        assert load(tmp_path) == [one]
        recorder.record(other)
    assert load(tmp_path) == [one, other]


def test_sampling_is_by_id_so_that_every_worker_chooses_alike(tmp_path: Path) -> None:
    episodes = numbered(400)
    kept: list[set[str]] = []
    for rate, name in ((0.25, "a"), (0.25, "b"), (0.5, "c")):
        with Recorder(tmp_path / name, sample_rate=rate) as recorder:
            for episode in episodes:
                recorder.record(episode)
        kept.append({t.trajectory_id for t in load(tmp_path / name)})
        assert recorder.counts.recorded == len(kept[-1])
        assert recorder.counts.sampled_out == 400 - len(kept[-1])
    assert kept[0] == kept[1] < kept[2]
    assert 60 < len(kept[0]) < 140 < len(kept[2]) < 260


@pytest.mark.parametrize(
    ("settings", "says"), [({"sample_rate": 1.5}, "than or equal"), ({"queue_size": 0}, "than or equal")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        Recorder(tmp_path, **settings)


@pytest.mark.parametrize("nonsense", [{}, {"trajectory_id": "x"}, None, 3, {"trajectory_id": 5}])
def test_whatever_is_handed_over_the_request_goes_on(
    nonsense: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.record(nonsense)
        recorder.record(nonsense)
    assert recorder.counts == (0, 0, 0, 2)
    assert len(caplog.records) == 1


# ---- a disk that is slow, full or gone ----


def stuck(text: str) -> str:
    raise AssertionError(text)


class SlowDisk:
    """A trajectory that holds the writing thread until it is let go, as a disk that does not answer would."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()

    def trajectory(self) -> Trajectory:
        disk = self

        class Waits(Trajectory):
            def model_dump_json(self, **settings: Any) -> str:  # type: ignore[override]
                disk.reached.set()
                disk.release.wait(30)
                return super().model_dump_json(**settings)

        return Waits(**dict(numbered(1)[0]))


def test_recorder_counts_overflow_while_the_disk_is_stuck(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = SlowDisk()
    with Recorder(tmp_path, queue_size=3) as recorder:
        recorder.record(disk.trajectory())
        assert disk.reached.wait(30)
        for episode in numbered(5):
            recorder.record(episode)  # returns, though nothing was written
        assert shards(tmp_path) == []
        assert recorder.counts == (0, 0, 3, 0)
        assert not recorder.flush(0.01)
        disk.release.set()
    assert recorder.counts == (3, 0, 3, 0)
    assert len(load(tmp_path)) == 3
    [said] = [r.getMessage() for r in caplog.records]
    assert "3 wait for the disk; further ones are only counted" in said


def test_closing_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    disk = SlowDisk()
    recorder = Recorder(tmp_path)
    recorder.record(disk.trajectory())
    assert disk.reached.wait(30)
    recorder.record(numbered(1)[0])
    assert not recorder.close(0.01)
    assert recorder.counts.dropped == 1
    recorder.record(numbered(1)[0])
    assert recorder.counts.dropped == 2
    disk.release.set()


def test_recorder_survives_a_directory_that_vanished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    with Recorder(store) as recorder:
        shutil.rmtree(store)
        store.touch()  # a file where the directory was
        for episode in numbered(2):
            recorder.record(episode)
            recorder.flush()
        assert recorder.counts == (0, 0, 0, 2)
        assert [r.levelno for r in caplog.records] == [logging.WARNING]
        store.unlink()
        recorder.record(numbered(1)[0])
    assert len(load(store)) == 1


# ---- several workers ----

WORKER = """
import sys
from r3agent import Recorder, Trajectory
from tests.support.trees import span, tree
recorder = Recorder(sys.argv[1], queue_size=10_000)
for i in range(int(sys.argv[2])):
    recorder.record(tree(span("attempt", passed=True, text="x" * 5000)))
print("recorded", flush=True)
sys.stdin.read()
"""


def worker(directory: Path, n: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory), str(n)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def test_killed_worker_tears_only_its_own_last_line(tmp_path: Path) -> None:
    workers = [worker(tmp_path, 200) for _ in range(3)]
    for process in workers:
        assert process.stdout is not None
        assert process.stdout.readline() == "recorded\n"
    workers[0].send_signal(signal.SIGKILL)
    for process in workers:
        process.communicate()
    assert [process.returncode for process in workers] == [-signal.SIGKILL, 0, 0]
    found = shards(tmp_path)
    whole = [sum(line.endswith(b"\n") for line in shard.read_bytes().splitlines(keepends=True)) for shard in found]
    assert sorted(whole)[-2:] == [200, 200]  # the interpreter's exit closed theirs
    assert 400 <= len(load(tmp_path)) == sum(whole) <= 600


def in_child(work: Any) -> int:
    """Exit status of a forked child that does `work` and leaves without the interpreter's own exit."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_has_a_thread_and_a_shard_of_its_own(tmp_path: Path) -> None:
    before, inside, after = numbered(3)
    with Recorder(tmp_path) as recorder:
        recorder.record(before)
        recorder.flush()

        def work() -> None:
            assert recorder.counts == (0, 0, 0, 0)
            recorder.record(inside)
            assert recorder.close()
            assert recorder.counts.recorded == 1

        assert in_child(work) == 0
        recorder.record(after)
    assert recorder.counts.recorded == 2
    assert sorted(len(shard.read_bytes().splitlines()) for shard in shards(tmp_path)) == [1, 2]
    assert {t.trajectory_id for t in load(tmp_path)} == {t.trajectory_id for t in (before, inside, after)}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_worker_does_not_inherit_a_stuck_queue(tmp_path: Path) -> None:
    disk = SlowDisk()
    with Recorder(tmp_path) as recorder:
        recorder.record(disk.trajectory())
        assert disk.reached.wait(30)
        [inside] = numbered(1)

        def work() -> None:
            recorder.record(inside)
            assert recorder.close()

        assert in_child(work) == 0
        assert load(tmp_path) == [inside]
        disk.release.set()


# ---- redaction ----


def hide(text: str) -> str:
    return text.replace("Ada", "[name]")


def test_no_text_that_is_redacted_reaches_the_disk(tmp_path: Path) -> None:
    asked = Task.model_validate(
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "I am Ada"}]}],
            "info": {"answer": ["Ada"]},
            "gold": {"role": "assistant", "content": "Ada"},
        }
    )
    call = {"id": "1", "type": "function", "function": {"name": "greet", "arguments": '{"who": "Ada"}'}}
    more = {"reasoning_details": [{"type": "reasoning.text", "text": "Ada asks"}]}
    first = span(
        "attempt", None, False, text="Hello Ada", reasoning="Ada asks", tool_calls=(call,), extra=more, **EXACT
    )
    assert first.verdict is not None
    first = first.model_copy(update={"verdict": first.verdict.model_copy(update={"feedback": "Ada"})})
    again = span("retry", first, True, request=({"role": "user", "content": "No, Ada!"},), text="Hi", **EXACT)
    episode = Trajectory(task=asked, spans=(first, again), metadata={"user": {"name": "Ada"}})
    assert episode.answer == again  # walks are cached by then
    with Recorder(tmp_path, redact=hide) as recorder:
        recorder.record(episode)
    assert "Ada" not in shards(tmp_path)[0].read_text()
    [kept] = load(tmp_path)
    assert kept.prompt(kept.spans[1])[-1]["content"] == "No, [name]!"
    assert kept.task.id != asked.id  # it is a hash of the messages
    assert kept.task.id == Task.model_validate({"messages": kept.task.messages}).id


def test_redaction_removes_tokens_of_the_text_and_after_it(tmp_path: Path) -> None:
    clean = span("attempt", None, False, text="nobody", **EXACT)
    named = span("reflect", clean, text="she was meant", reasoning="Ada was", **EXACT)
    after, beside = (span("retry", above, True, text="yes", **EXACT) for above in (named, clean))
    episode = tree(clean, named, after, beside)
    assert episode.answer == after
    with Recorder(tmp_path, redact=hide) as recorder:
        recorder.record(episode)
    [kept] = load(tmp_path)
    assert [s.capability for s in kept.spans] == ["trainable-exact", "eval-only", "eval-only", "trainable-exact"]
    assert [s.token_ids for s in kept.spans] == [(3,), None, None, (3,)]
    assert {(s.prompt_token_ids, s.logprobs) for s in kept.spans[1:3]} == {(None, None)}
    assert kept.spans[1].capability_note == "redacted: its tokens spelled what was taken out"


@given(trajectories(), st.sampled_from(["", "0", "a", "request"]))
def test_redaction_keeps_tokens_of_unchanged_conversations(episode: Trajectory, letter: str) -> None:
    kept = redact_trajectory(episode, lambda text: text.replace(letter, "·") if letter else text)
    for was, now in zip(episode.spans, kept.spans, strict=True):
        same = (episode.prompt(was), was.message) == (kept.prompt(now), now.message)
        assert now.token_ids == (was.token_ids if same else None)
    if not letter:
        assert [Span.model_validate(dict(s)) for s in kept.spans] == list(episode.spans)


def test_what_cannot_be_redacted_is_not_kept_nor_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Recorder(tmp_path, redact=stuck) as recorder:
        recorder.record(tree(span("attempt", text="my secret")))
    assert recorder.counts == (0, 0, 0, 1)
    assert "secret" not in caplog.text
    assert shards(tmp_path) == []


# ---- what is recorded is what was passed ----


def test_recorder_keeps_what_the_request_changes_later(tmp_path: Path) -> None:
    (one,) = numbered(1)
    passed = one.model_dump(mode="json")
    with Recorder(tmp_path) as recorder:
        recorder.record(passed)
        passed["spans"].clear()
    assert load(tmp_path) == [one]


def test_recorder_mends_numbers_and_dates_that_are_no_json(tmp_path: Path) -> None:
    passed = numbered(1)[0].model_dump(mode="json")
    passed["metadata"] = {"score": float("nan"), "at": date(2026, 11, 29)}
    with Recorder(tmp_path) as recorder:
        recorder.record(passed)
    (kept,) = load(tmp_path)
    assert "metadata.score" in str(kept.metadata["mended"])
    assert kept.metadata["at"] == "2026-11-29"


def test_recorder_of_a_burst_stores_all_of_it(tmp_path: Path) -> None:
    """More than it has time to validate: readers do then."""
    one = tree(*(span("attempt", text="word " * 50, **EXACT) for _ in range(100))).model_dump(mode="json")
    with Recorder(tmp_path, queue_size=2000) as recorder:
        for i in range(1000):
            recorder.record({**one, "trajectory_id": f"{i}"})
        recorder.record({**one, "trajectory_id": "bad", "sample": "no number"})
        assert recorder.flush(60)
    assert recorder.counts.dropped == 0
    assert {t.trajectory_id for t in load(tmp_path)} == {f"{i}" for i in range(1000)}
    checked = [LINE_CHECKSUM.encode() in line for path in shards(tmp_path) for line in path.read_bytes().splitlines()]
    assert {*checked} == {True, False}
