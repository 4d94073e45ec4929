"""Part of a collection, on a worker of a Ray cluster.

A worker that shares the run directory writes into its store. One that uploads its shards has a directory of its own,
with the settings and the versions of the run but no weights, and removes it at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from r3agent._util.files import disk_errors, write_atomically
from r3agent.episodes.collect import Part
from r3agent.episodes.quota import CollectLimits
from r3agent.errors import ConfigError, R3Error
from r3agent.records.summary import Tally
from r3agent.records.trajectory import Task, Trajectory
from r3agent.run.collector import Collector, Progress
from r3agent.run.config import CONFIG_FILE, to_toml
from r3agent.store.registry import PolicyCard, Registry, write_card
from r3agent.store.remote import RemoteShards
from r3agent.store.shards import read
from r3agent.store.upload import uploading


class Ended(NamedTuple):
    """Outcome of a part."""

    tally: Tally
    cost: float | None
    left: list[str]
    """Episodes that its limits left."""


class Failed(NamedTuple):
    """Error of a part that another worker would meet too."""

    message: str
    is_config: bool


def request_of(run: Collector, remote: RemoteShards | None) -> dict[str, Any]:
    """Return what a worker needs to open a run.

    Args:
        remote: place to upload shards to; `None` if all nodes share the run directory.
    """
    sections = run.config.model_dump(mode="json")
    settings = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    request: dict[str, Any] = {"directory": str(run.directory.resolve()), "settings": settings, "remote": None}
    if remote is not None:
        cards = map(run.registry.card, run.registry.versions())
        live = run.registry.live_path
        request["remote"] = {
            "location": remote.location,
            "cards": [card.model_copy(update={"fingerprint": ()}).model_dump(mode="json") for card in cards],
            "live": live.read_bytes() if live.exists() else None,
            "config": to_toml(run.config),
        }
    return request


def collect_part(
    request: Mapping[str, Any], tasks: list[dict[str, Any]], part: Part, spending: CollectLimits
) -> Ended | Failed:
    """Collect some episodes on a worker.

    Args:
        request: as `request_of` returns it, with the version, its server and the limits of the episodes.
    """
    sys.path += [folder for folder in request["path"] if folder not in sys.path]
    try:
        with _open(request, part) as (run, progress):
            summary, tally = run.collect_part(
                request["version"],
                request["base_url"],
                [_unpacked(task) for task in tasks],
                request["limits"],
                part,
                spending,
                progress,
            )
            ended = {t.trajectory_id for t in read(run.directory, prefix=part.prefix)} if summary.left else {*part.ids}
    except R3Error as error:
        return Failed(f"{type(error).__name__}: {error}", isinstance(error, ConfigError))
    return Ended(tally, summary.cost, [id_ for id_ in part.ids if id_ not in ended])


@contextmanager
def _open(request: Mapping[str, Any], part: Part) -> Generator[tuple[Collector, Progress | None]]:
    """Open the run, or a directory that is like it, whose shards are uploaded."""
    given = request["remote"]
    if given is None:
        yield Collector(request["directory"], request["settings"]), None
        return
    remote = RemoteShards(given["location"])
    with TemporaryDirectory(prefix="r3agent-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder) / Path(request["directory"]).name  # whose name is that of the run in its telemetry
        registry = Registry(directory)
        with disk_errors(directory):
            for card in map(PolicyCard.model_validate, given["cards"]):
                write_card(registry.version_dir(card.version), card)
            if given["live"] is not None:
                write_atomically(registry.live_path, given["live"])
            write_atomically(directory / CONFIG_FILE, given["config"])
        run = Collector(directory, request["settings"])
        with uploading(remote, folder_of(part), directory / "trajectories") as check:
            yield run, lambda done, total: check()


def folder_of(part: Part) -> str:
    """Return the name of a part's folder at the place of the shards."""
    return part.prefix.removesuffix("-")


def packed(begin: Task | Trajectory) -> dict[str, Any]:
    """Return a task, or a recorded failure to begin with, as JSON."""
    return {type(begin).__name__: begin.model_dump(mode="json")}


def _unpacked(given: Mapping[str, Any]) -> Task | Trajectory:
    return Task.model_validate(given["Task"]) if "Task" in given else Trajectory.model_validate(given["Trajectory"])
