"""Results of benchmarks: the sections of RESULTS.md, and the finished parts of those that take hours."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from r3agent.records.prompts import PROMPTS
from r3agent.store.models import find_checkpoint
from r3agent.store.provenance import file_sha256

RESULTS = Path(__file__).with_name("RESULTS.md")
FINISHED = Path(__file__).with_name("finished")
"""Directory of the files of `Finished`, which belong to the repository."""


def _commit() -> str:
    """Name the commit of the code, with a `+` if files differ from it, those aside that a measurement itself writes."""
    status = _git("status", "--porcelain", "--", ".", f":!{FINISHED.name}", f":!{RESULTS.name}", ":/r3agent")
    return (_git("rev-parse", "--short", "HEAD") + "+" * bool(status)) or "unknown"


def _git(*arguments: str) -> str:
    try:
        made = subprocess.run(("git", *arguments), cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # there is no git
        return ""
    return made.stdout.strip()


COMMIT = _commit()
"""Commit of the code when it was loaded."""


class Finished:
    """Parts of a measurement that are finished, a line of JSON each: it goes on with them, on any machine.

    A line has the key of its part, the commit of the code at its begin, with that at its end if it differs, and the
    result. Delete a line to measure its part again. Several processes may add lines.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the last result with this key."""
        return next((result for known, result in reversed(self.all()) if known == key), None)

    def all(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the keys and results, in order of time."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [(line["key"], line["result"]) for line in map(json.loads, lines)]

    def add(self, key: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        now = _commit()  # servers load the code when they start
        commit = COMMIT if now == COMMIT else f"{COMMIT} to {now}"
        with self.file.open("a") as file:
            file.write(json.dumps({"key": key, "commit": commit, "result": result}, separators=(",", ":")) + "\n")


def digest(settings: object) -> str:
    """Return a short name of settings, for keys."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def weights_of(model: str) -> str:
    """Return a short name of a model's weights, for keys: models of one name, or of one path, may differ.

    A directory's is of its `config.json` and of the content of its weight files, since models that were trained from
    one have the same shapes. A hub id stands for itself.

    Raises:
        ConfigError: there is no such directory.
    """
    found = Path(find_checkpoint(model))
    if not found.is_dir():
        return digest(model)
    config = json.loads((found / "config.json").read_text())
    config.pop("transformers_version", None)  # of the program that wrote it
    files = [*found.glob("*.safetensors"), *found.glob("*.bin")]
    return digest([config, {file.name: file_sha256(file) for file in files}])


def surroundings(model: str = "bundled") -> list[Any]:
    """Return what results of a bundled policy depend on besides their settings, for keys."""
    return [PROMPTS["general"].model_dump(), weights_of(model)]


def replace_section(file: Path, title: str, command: str, text: str) -> None:
    """Write a benchmark's section of the results at their end, and remove the old one.

    Args:
        command: command that reproduces it.
    """
    before = file.read_text() if file.exists() else "# Results\n"
    kept = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", before, flags=re.DOTALL).rstrip("\n")
    file.write_text(f"{kept}\n\n## {title}\n\n`{command}`\n\n{text}\n")
