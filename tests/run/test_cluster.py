"""Collection over a Ray cluster of several nodes, one of which dies."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from r3agent.episodes.collect import HOPELESS
from r3agent.errors import ConfigError, R3Error
from r3agent.run.cluster import NAME_FILE
from r3agent.run.stages import Run
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import read, shards
from r3agent.testing import ScriptedEndpoint
from tests.support.outage import free_port
from tests.support.s3 import HAS_S3, S3, s3_server

ray = pytest.importorskip("ray")
N = 72


# Of the loopback addresses, Ray replaces only 127.0.0.1, by that of the machine.
NODE = {
    "num_cpus": 1,
    "node_ip_address": "127.0.0.2",
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of a server of S3, which this process and the nodes that it starts ask; it has a bucket."""
    folder = tmp_path_factory.mktemp("s3")
    if not HAS_S3:
        yield folder / "none"
        return
    with s3_server(folder) as env, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in (name for name in env if name.startswith("AWS_")):
            patch.setenv(name, env[name])
        patch.setattr(sys, "path", [*sys.path, str(S3)])
        httpx.put(f"{env['AWS_ENDPOINT_URL']}/bucket").raise_for_status()
        yield folder / "s3.log"


@pytest.fixture(scope="module")
def cluster(bucket: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = start_cluster()
        try:
            ray.init(address=made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def start_cluster() -> Any:
    """Start two nodes; Ray gives up after 15 s, in which a busy machine may not import the programs of a node."""
    from ray.cluster_utils import Cluster

    for _ in range(3):
        made = Cluster()
        if starts_node(made) and starts_node(made):
            return made
        with suppress(Exception):
            made.shutdown()
    pytest.skip("Ray does not start on this machine in 15 s")


def starts_node(made: Any) -> bool:
    """Start a node; return False if Ray gave up, without what it left running."""
    own = psutil.Process()
    nodes, before = made.list_all_nodes(), own.children()
    try:
        made.add_node(**NODE)
    except Exception:  # it has no class of its own
        for node in made.list_all_nodes():
            if node not in nodes:
                with suppress(Exception):
                    made.remove_node(node, allow_graceful=False)
        left = [child for child in own.children() if child not in before]  # of a node that was not made
        for one in [grandchild for child in left for grandchild in child.children(recursive=True)] + left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left)
        return False
    return True


def answer(body: dict[str, Any], _: int) -> str:
    time.sleep(0.02)
    return "right" if len(body["messages"]) > 2 else "wrong"


def make_run(folder: Path, url: str, **settings: Any) -> Run:
    folder.mkdir()
    file = folder.parent / "tasks.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"t{i}", "prompt": f"{i}?", "answer": "right"}) for i in range(N)))
    task = {"task.source": str(file), "task.verifier": "exact", "policy.model": "scripted"}
    return Run(folder, {"policy.base_url": url, "collect.n": N, "collect.reflections": 2, **task, **settings})


def test_cluster_that_does_not_start_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It comes first: a cluster that the process has connected to is used.
    monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    with (
        ScriptedEndpoint(answer) as endpoint,
        pytest.raises(ConfigError, match=r"does not start .*; start .* `ray start --head`, and pass --address with"),
    ):
        make_run(tmp_path / "run", endpoint.url, **{"collect.engine": "ray"}).collect()


@pytest.mark.parametrize("remote", [False, True])
def test_cluster_runs_each_episode_once_though_a_node_dies(
    tmp_path: Path, cluster: Any, bucket: Path, remote: bool
) -> None:
    if len(cluster.list_all_nodes()) == 1 and not starts_node(cluster):
        pytest.skip("Ray does not start another node on this machine in 15 s")
    url = "s3://bucket/runs" if HAS_S3 else f"file://{tmp_path}/remote"
    place = {"collect.shards": url} if remote else {}
    with ScriptedEndpoint(answer) as endpoint:
        alone = make_run(tmp_path / "alone", endpoint.url)
        expected = alone.collect()
        engine = {"collect.engine": "ray", "collect.concurrency": 1}
        many = make_run(tmp_path / "many", endpoint.url, **engine, **place)

        def kill_a_node() -> None:
            store = tmp_path / "many" / "trajectories"
            while not store.is_dir() or sum(file.read_bytes().count(b"\n") for file in shards(store)) < HOPELESS + 4:
                time.sleep(0.02)
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

        killer = threading.Thread(target=kill_a_node, daemon=True)
        killer.start()
        told: list[tuple[int, int]] = []
        summary = many.collect(lambda done, total: told.append((done, total)))
        killer.join()
        again = many.collect()
    ids = [sorted(t.trajectory_id for t in read(run.directory)) for run in (alone, many)]
    assert len(ids[0]) > 2 * HOPELESS  # so that both nodes have a part
    assert ids[0] == ids[1]
    assert summary.model_copy(update={"seconds": expected.seconds}) == expected
    assert (summary.episodes, summary.errors, again.resumed) == (len(ids[0]), {}, len(ids[0]))
    assert told[-1] == (len(ids[0]), len(ids[0]))
    assert len(shards(many.directory)) > 2
    if remote:
        assert not RemoteShards(f"{url}/{(many.directory / NAME_FILE).read_text().strip()}").parts()  # all is fetched
        assert not HAS_S3 or "PUT /bucket/runs/many-" in bucket.read_text()


@pytest.mark.parametrize("budget", [("max_episodes", 5), ("max_tokens", 40)])
def test_cluster_ends_at_a_budget_and_goes_on(tmp_path: Path, cluster: Any, budget: tuple[str, int]) -> None:
    name, limit = budget
    ray = {"collect.engine": "ray", "collect.concurrency": 1}
    with ScriptedEndpoint(answer) as endpoint:
        some = make_run(tmp_path / "run", endpoint.url, **ray, **{f"collect.{name}": limit}).collect()
        rest = Run(tmp_path / "run", {**ray, f"collect.{name}": 10**6}).collect()
    assert some.ended_by == f"{name} = {limit}"
    assert some.left > 0
    if name == "max_episodes":
        assert some.episodes == limit
    else:
        assert limit <= some.tokens_sampled < 3 * limit
    assert (rest.resumed, rest.left, rest.ended_by) == (some.episodes, 0, None)
    ids = [t.trajectory_id for t in read(tmp_path / "run")]
    assert len(ids) == len({*ids}) == rest.episodes == some.episodes + some.left


def test_cluster_names_the_error_of_a_worker(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "mine.py").write_text("async def agent(messages, client):\n    return 'wrong'\n")
    with ScriptedEndpoint(answer) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        run = make_run(tmp_path / "run", endpoint.url, **{"collect.engine": "ray", "agent.agent": "mine:agent"})
        run.check_subject()
        (tmp_path / "mine.py").unlink()
        with pytest.raises(ConfigError, match=r"on a worker: ConfigError: .*mine"):
            run.collect()


def test_cluster_refuses_a_place_that_its_nodes_do_not_share(tmp_path: Path, cluster: Any) -> None:
    with ScriptedEndpoint(answer) as endpoint:
        given = {"collect.engine": "ray", "collect.shards": "memory://own"}  # of each process
        with pytest.raises(
            ConfigError, match=r"collect.shards = 'memory://own': a worker uploaded 16 .* none is there"
        ):
            make_run(tmp_path / "run", endpoint.url, **given).collect()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "127.0.0.1:66000", "nonsense", "127.0.0.1"])
def test_cluster_refuses_an_address_without_an_answer(tmp_path: Path, address: str) -> None:
    with ScriptedEndpoint(answer) as endpoint:
        given = {"collect.engine": "ray", "collect.address": address.format(port=free_port())}
        with pytest.raises(ConfigError, match=r"collect.address = '.*; give the HOST:PORT that `ray start --head`"):
            make_run(tmp_path / "run", endpoint.url, **given).collect()


def test_cluster_stops_if_the_first_episodes_all_error(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "broken.py").write_text("def check(task, answer):\n    raise ValueError('no luck')\n")
    with ScriptedEndpoint(answer) as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        run = make_run(tmp_path / "run", endpoint.url, **{"collect.engine": "ray", "task.verifier": "broken:check"})
        with pytest.raises(R3Error, match="the first 16 episodes all errored"):
            run.collect()
    assert len([*read(run.directory)]) == HOPELESS
