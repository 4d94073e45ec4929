"""Shards at a URL: written by workers, and fetched into the store once each."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from r3agent._util.wait import wait_until
from r3agent.errors import ConfigError, RecordError
from r3agent.records.trajectory import EpisodeError, Trajectory
from r3agent.run.config import parse_override
from r3agent.run.stages import Run
from r3agent.store.fetch import Fetcher
from r3agent.store.lines import encode
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import TrajectoryWriter, read, shards
from r3agent.store.upload import uploading
from tests.support.s3 import needs_s3, s3_server
from tests.support.trees import span, tree

PART = "20260101T000000-0123456789abcdef-000001"
SOON_S = 0.01

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteShards]:
    url = f"memory://{uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/remote"
    made = RemoteShards(url, "run")
    made.check()
    yield made
    assert not made.parts()


def records(n: int) -> list[Trajectory]:
    return [tree(span("attempt", text=str(i), passed=True)) for i in range(n)]


def upload(remote: RemoteShards, store: Path, *given: Trajectory) -> None:
    with uploading(remote, PART, store), TrajectoryWriter(store, prefix=f"{PART}-") as writer:
        for record in given:
            writer.append(record)


def fetched(remote: RemoteShards, store: Path) -> list[Trajectory]:
    """The content of the store after a program that has just begun has fetched into it."""
    store.mkdir(exist_ok=True)
    Fetcher(remote, store).fetch()
    return [*read(store, strict=True)]


def test_fetching_adds_what_was_uploaded_once(remote: RemoteShards, tmp_path: Path) -> None:
    given = records(3)
    failed = given[0].model_copy(update={"error": EpisodeError(kind="VerifierError", message="no")})
    upload(remote, tmp_path / "worker", failed, *given[1:])
    copies = [(shard.name, remote.read(shard) or b"") for _, found in remote.parts(PART) for shard in found]
    assert fetched(remote, tmp_path / "store") == [failed, *given[1:]]
    for _, content in copies:  # by a driver that died before it removed them, or by a worker given up too early
        remote.upload(PART, "again", 0, content)
    assert fetched(remote, tmp_path / "store") == [failed, *given[1:]]
    upload(remote, tmp_path / "other", given[0])  # which is whole now
    assert sorted(map(encode, fetched(remote, tmp_path / "store"))) == sorted(map(encode, [failed, *given]))
    assert all(shard.name.startswith(PART) for shard in shards(tmp_path / "store"))


def test_part_goes_on_after_what_a_dead_worker_uploaded(remote: RemoteShards, tmp_path: Path) -> None:
    given = records(3)
    with uploading(remote, PART, tmp_path / "dead", every_s=SOON_S):
        writer = TrajectoryWriter(tmp_path / "dead", prefix=f"{PART}-")
        for n, record in enumerate(given[:2], start=1):
            writer.append(record)
            assert wait_until(lambda n=n: sum(len(found) for _, found in remote.parts(PART)) == n, timeout_s=30)
        with uploading(remote, PART, tmp_path / "next"):
            assert [*read(tmp_path / "next")] == given[:2]
            with TrajectoryWriter(tmp_path / "next", prefix=f"{PART}-") as rest:
                rest.append(given[2])
        writer.close()
    assert len(remote.parts(PART)[0][1]) == 3
    assert sorted(t.trajectory_id for t in fetched(remote, tmp_path / "store")) == sorted(
        t.trajectory_id for t in given
    )


def test_objects_and_lines_that_are_damaged_are_left_out(
    remote: RemoteShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = records(2)
    upload(remote, tmp_path / "worker", one)
    path = remote.parts(PART)[0][1][0].path
    fs, _ = fsspec.url_to_fs(remote.location)
    fs.pipe_file(path, fs.cat_file(path)[:-9])
    remote.upload(PART, "lines", 0, encode(one).replace(b"attempt", b"retries") + encode(other) + b'{"torn')
    with caplog.at_level(logging.WARNING):
        assert fetched(remote, tmp_path / "store") == [other]
    assert "is not what was uploaded" in caplog.text


def test_worker_stops_when_uploads_go_on_failing(tmp_path: Path) -> None:
    remote, stopped = RemoteShards(str(tmp_path / "remote")), list[bool]()

    def fails(check: Callable[[], None]) -> bool:
        try:
            check()
        except RecordError as error:
            return "uploads failed: collect.shards" in str(error)
        return False

    def work() -> None:
        with (
            uploading(remote, PART, tmp_path / "worker", every_s=SOON_S) as check,
            TrajectoryWriter(tmp_path / "worker", prefix=f"{PART}-") as writer,
        ):
            check()
            (tmp_path / "remote").write_text("in the way")
            writer.append(tree())
            stopped.append(wait_until(lambda: fails(check), timeout_s=30))

    with pytest.raises(RecordError, match=r"collect.shards = '.*remote': cannot write: .*; name a place"):
        work()
    assert stopped == [True]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nope://bucket/run", r"Protocol not known: nope; write a URL that fsspec knows, such as s3://BUCKET/FOLDER"),
        ("gs://bucket/run", r"ImportError: .*; pip install the package that it names, on every node"),
        ("file:///proc/none", r"FileNotFoundError: .*; make the bucket or container"),
        ("memory://", r"it names no folder; write e.g. s3://BUCKET/FOLDER"),
        ("s3://me:hidden@bucket/run", r"collect.shards: a URL with a password, .*environment"),
        ("https://host/run?sig=hidden", r"collect.shards: a URL with a password, a query"),
        ("simplecache::s3://bucket/run", r"or `::` would be written to r3.toml"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Run(tmp_path, {"collect.engine": "ray", "task.source": "countdown", "collect.shards": url}).collect()
    assert "hidden" not in str(refused.value)
    assert not [*tmp_path.iterdir()]


def test_a_place_for_shards_needs_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shards = 's3://b/f': only workers upload .* add --engine ray"):
        Run(tmp_path, dict([parse_override("collect.shards=s3://b/f")]))


ON_S3 = """
import sys
from pathlib import Path
from r3agent.errors import ConfigError
from r3agent.store.fetch import Fetcher
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import TrajectoryWriter, read
from r3agent.store.upload import uploading
from tests.support.trees import tree
import httpx, json, os

def error():
    try:
        RemoteShards("s3://bucket/runs", "one").check()
    except ConfigError as error:
        return str(error)

server, told = os.environ["AWS_ENDPOINT_URL"], {"absent": error()}
httpx.put(f"{server}/bucket").raise_for_status()
told["made"] = error()
folder, remote = Path(sys.argv[1]), RemoteShards("s3://bucket/runs", "one")
with uploading(remote, "part", folder / "worker"), TrajectoryWriter(folder / "worker", prefix="part-") as writer:
    for _ in range(3):
        writer.append(tree())
told["objects"] = [shard.path for _, found in remote.parts() for shard in found]
(folder / "store").mkdir()
Fetcher(remote, folder / "store").fetch()
told["same"] = [*read(folder / "store")] == [*read(folder / "worker")]
told["after"] = remote.parts()
httpx.post(f"{server}/moto-api/reset-auth", content=b"0").raise_for_status()
told["refused"] = error()
print(json.dumps(told))
"""


@needs_s3
def test_shards_on_s3_are_fetched_and_its_errors_named(tmp_path: Path) -> None:
    with s3_server(tmp_path) as env:
        command = [sys.executable, "-W", "error", "-c", ON_S3, tmp_path]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "bucket does not exist; make the bucket" in told["absent"]
    assert (told["made"], told["same"], told["after"]) == (None, True, [])
    assert [path.rpartition("/")[0] for path in told["objects"]] == ["bucket/runs/one/part"]
    assert "PermissionError" in told["refused"]
    assert "a-secret" not in done.stdout + done.stderr
