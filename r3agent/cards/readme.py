"""Model card of a version: a README.md with metadata as the Hugging Face Hub reads it.

It names no path of this machine, no person, and no text of an episode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from r3agent._util.console import printable
from r3agent._util.files import write_atomically
from r3agent._util.messages import count
from r3agent.cards.reports import VersionEvaluation, VersionReport, describe
from r3agent.evaluate import Difference, Rate
from r3agent.store.history import GATE, PERSON, Event
from r3agent.store.models import HUB_ID, resolve_model
from r3agent.store.registry import ADAPTER_DIR, MODEL_DIR, Registry

README = "README.md"
SETTINGS = ("method", "lora_r", "lora_alpha", "credit", "learning_rate", "batch_size", "epochs", "dtype", "seed")
"""Settings of a training that the card shows."""
WITH_ERRORS = ("last_error", "remedies")
"""Metrics of rows with texts of errors, which may name a server or a file."""
LICENSE = ("license", "license_name", "license_link")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)$")
"""Folder of a model in the cache of the Hub."""


def write_model_card(run: str | Path, version: str) -> None:
    """Write the model card of a trained version beside its weights; the base has none.

    Raises:
        ConfigError, RecordError, SchemaVersionError: as `describe`, or it cannot be written.
    """
    directory = Registry(run).version_dir(version)
    for folder in (directory / ADAPTER_DIR, directory / MODEL_DIR):
        if folder.is_dir():
            write_atomically(folder / README, model_card(describe(run, version)))


def model_card(report: VersionReport, *, merged: bool = False) -> str:
    """Render the model card of a version.

    Args:
        merged: the weights beside it are whole, although the version is an adapter.
    """
    is_adapter = report.kind == "lora" and not merged
    front = yaml.safe_dump(_metadata(report, is_adapter), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(_body(public(report), is_adapter)) + "\n"


def public(report: VersionReport) -> VersionReport:
    """Take out what is of this machine, or of a person: paths, names, reasons that people gave, texts of errors."""
    names = {"name": public_name(report.name), "base_model": public_name(report.base_model)}
    metrics = dict(report.metrics)
    if isinstance(rows := metrics.get("rows"), Mapping):
        metrics["rows"] = {name: value for name, value in rows.items() if name not in WITH_ERRORS}
    return report.model_copy(update={**names, "metrics": metrics, "history": tuple(map(_anonymous, report.history))})


def public_name(model: str) -> str:
    """Return the hub id of a model, or else the name of its directory."""
    return hub_id(model) or Path(model).name


def hub_id(model: str) -> str | None:
    """Return the hub id of a model, also of a directory in the Hub's cache, or `None` for any other directory."""
    for part in Path(model).parts:
        if cached := CACHED.match(part):
            return f"{cached[1]}/{cached[2]}"
    return model if HUB_ID.fullmatch(model) and not Path(model).is_dir() else None


def _anonymous(event: Event) -> Event:
    return event if event.by == GATE else event.model_copy(update={"by": PERSON, "reasons": ()})


def _metadata(report: VersionReport, is_adapter: bool) -> dict[str, Any]:
    base = hub_id(report.base_model)
    return {
        **({"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"} if base else {}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["r3agent", "grpo", "reinforcement-learning", *(["lora"] if report.kind == "lora" else [])],
        **_license(report.base_model),
    }


def _license(model: str) -> dict[str, str]:
    """Read the license from the base model's own card, if that is on this machine."""
    path = Path(resolve_model(model)) / README
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not (front := re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)):
        return {}
    try:
        found = yaml.safe_load(front[1])
    except yaml.YAMLError:
        return {}
    fields: Mapping[Any, Any] = found if isinstance(found, Mapping) and "license" in found else {}
    return {key: value for key in LICENSE if isinstance(value := fields.get(key), str)}


def _body(report: VersionReport, is_adapter: bool) -> Iterator[str]:
    kind = "A LoRA adapter" if is_adapter else "Weights"
    parent = f", from its version {report.parent}" if report.parent else ""
    yield f"# {_plain(report.name)} {report.version}"
    yield ""
    yield f"{kind} of {_code(report.base_model)}, trained{parent} with r3agent on {report.created_at}."
    yield from _table("Training", ("", ""), list(_training(report)))
    for found in report.evaluations:
        title = (
            f"{found.candidate} against {found.baseline} on {count(found.n_tasks, 'task')} of the split {found.split}"
        )
        yield from _table(
            title, ("", found.baseline, found.candidate, "difference (95 % interval)"), [*compared(found)]
        )
    yield from _table("History", ("time", "event", "by", "reasons"), [_event(event) for event in report.history])


def _training(report: VersionReport) -> Iterator[tuple[str, str]]:
    yield from ((name, _code(report.settings[name])) for name in SETTINGS if name in report.settings)
    if report.episodes:
        digest = sha256("".join(f"{e.id}{e.sha256}" for e in report.episodes).encode()).hexdigest()
        yield "episodes", f"{len(report.episodes)}, SHA-256 of their ids and hashes {_code(digest)}"
    if report.provenance is not None:
        yield "packages", ", ".join(f"{name} {version}" for name, version in report.provenance.packages.items())
        yield from ((name, _code(sha)) for name, sha in report.provenance.made_with.items())
    yield from ((name, f"{value:.4g}") for name, value in numbers(report.metrics.get("train")))


def numbers(values: Any) -> Iterator[tuple[str, float]]:
    if isinstance(values, Mapping):
        yield from ((key, value) for key, value in values.items() if isinstance(value, int | float))


def compared(found: VersionEvaluation) -> Iterator[tuple[str, ...]]:
    """Yield a row of texts for each cell of a comparison: its name, both rates, and the difference."""
    for cell, change in found.differences.items():
        rates = (_rate(of.get(cell)) for of in (found.baseline_rates, found.rates))
        yield cell.replace("_", " "), *rates, change_text(change)


def change_text(change: Difference) -> str:
    return f"{change.points:+.1f} points ({change.low:+.1f} to {change.high:+.1f}, p = {change.p_value:.2g})"


def _rate(rate: Rate | None) -> str:
    return f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})" if rate else ""


def _event(event: Event) -> tuple[str, ...]:
    other = f" ({event.other} before)" if event.other else ""
    return event.at, f"{event.event.replace('_', ' ')}{other}", event.by, "; ".join(event.reasons)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"## {title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(value: Any) -> str:
    return " ".join(re.sub(r"[<>`*_\[\]]", "", printable(str(value))).split())


def _code(value: Any) -> str:
    return f"`{' '.join(printable(str(value)).replace('`', '').split())}`"
