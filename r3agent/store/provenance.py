"""Provenance of a trained version, in files beside its card: packages, and hashes of weights, code and episodes.

`provenance.json` is one record; `episodes.jsonl` has the id of an episode and its SHA-256 in each line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Literal

import orjson

from r3agent._util.files import write_atomically
from r3agent.errors import RecordError
from r3agent.records.json_values import json_bytes
from r3agent.records.record import VersionedRecord
from r3agent.records.trajectory import SPLIT, Trajectory
from r3agent.store.reading import lines_of, read_record
from r3agent.store.registry import ADAPTER_DIR, MODEL_DIR

PROVENANCE_FILE = "provenance.json"
EPISODES_FILE = "episodes.jsonl"
PACKAGES = ("r3agent", "torch", "transformers", "trl", "peft")


class Provenance(VersionedRecord):
    """Packages that trained a version, and hashes by which its weights and what made its episodes are known again."""

    schema_version: Literal[1] = 1
    packages: dict[str, str]
    made_with: dict[str, str] = {}
    """SHA-256 of the graph (with its limits, sampling and agent), the prompts and the verifier, by these names, as the
    run had them when the version was trained."""
    weights: dict[str, str]
    """SHA-256 of each file of the weights, by its path in the version's directory."""


def write_provenance(directory: Path, made_with: Mapping[str, str]) -> None:
    """Write the provenance of a version whose weights are in `directory`.

    Raises:
        ConfigError: it cannot be written.
    """
    found = Provenance(packages=packages(), made_with=dict(made_with), weights=weight_hashes(directory))
    write_atomically(directory / PROVENANCE_FILE, found.model_dump_json(indent=2))


def read_provenance(directory: Path) -> Provenance | None:
    """Read the provenance; `None` for the base, and for a version that has none.

    Raises:
        RecordError, SchemaVersionError: it cannot be read.
    """
    path = directory / PROVENANCE_FILE
    return read_record(Provenance, path) if path.exists() else None


def packages() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide on weights."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def weight_hashes(directory: Path) -> dict[str, str]:
    """Hash the tensors and configurations of a version."""
    paths = [path for folder in (ADAPTER_DIR, MODEL_DIR) for path in (directory / folder).glob("**/*")]
    return {str(p.relative_to(directory)): file_sha256(p) for p in sorted(paths) if p.is_file() and p.suffix != ".md"}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def episode_sha256(trajectory: Trajectory) -> str:
    """Hash an episode with its verdicts; the split that a run adds to its metadata does not count."""
    record = trajectory.model_dump(mode="json", exclude={"metadata": {SPLIT}})
    return sha256(json_bytes(record, sort_keys=True)).hexdigest()


def write_episodes(directory: Path, hashes: Mapping[str, str], ids: Iterable[str]) -> None:
    """Write the hashes of the episodes that a version was trained on.

    Raises:
        ConfigError: they cannot be written.
    """
    lines = [orjson.dumps([id_, hashes[id_]]).decode() for id_ in sorted({*ids})]
    write_atomically(directory / EPISODES_FILE, "\n".join([*lines, ""]))


def read_episodes(directory: Path) -> dict[str, str]:
    """Read the hashes of the episodes; empty if none were written.

    Raises:
        RecordError: they cannot be read.
    """
    path = directory / EPISODES_FILE
    try:
        lines: list[Any] = [orjson.loads(line) for line in lines_of(path) if line.strip()] if path.exists() else []
        return {str(id_): str(sha) for id_, sha in lines}
    except (ValueError, TypeError, OSError) as error:
        raise RecordError(f"{path} has no ids with hashes: {error}; restore it from a copy of the run") from error
