"""Spans of verbs that open no `Run`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from r3agent._util.files import decode
from r3agent.store.shards import CONFIG_FILE, store_at


def export_spans_of(directory: str | Path) -> None:
    """Export the spans of a verb on a run directory, or on its store, if the run's settings say so.

    Raises:
        ConfigError: the settings cannot be read, or the extra is missing.
    """
    store = store_at(directory)
    run = store.parent if store.name == "trajectories" else store
    file = run / CONFIG_FILE
    if not file.is_file() or not _has_traces(file):
        return
    from r3agent.run.config import load_config
    from r3agent.telemetry.export import export_spans

    export_spans(load_config(file, {}).telemetry, run.absolute().name)


def _has_traces(file: Path) -> bool:
    """Return True if the file may ask for spans: reading all settings takes longer than a label."""
    try:
        section = tomllib.loads(decode(file.read_bytes(), str(file))).get("telemetry", {})
    except (OSError, tomllib.TOMLDecodeError):
        return True  # which loading the settings reports
    return not isinstance(section, dict) or section.get("traces", "none") != "none"
