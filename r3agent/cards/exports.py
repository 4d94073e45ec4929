"""Export of a version: its adapter, or whole weights that plain transformers and vLLM load, with its cards beside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from r3agent._util.checked import NotNegative, checked
from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.imports import require_extra
from r3agent.cards.readme import README, model_card, public, public_name
from r3agent.cards.reports import describe
from r3agent.deploy import FingerprintReport
from r3agent.deploy.fingerprint import TOLERANCE, places_of, recognise
from r3agent.deploy.weights import check_adapter, check_weights, read_json
from r3agent.errors import ConfigError, DeployError, RecordError
from r3agent.records.record import Record
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.provenance import read_provenance, weight_hashes
from r3agent.store.registry import PolicyCard, Registry

CARD_FILE = "policy_card.json"
ADAPTER_CONFIG = "adapter_config.json"


class ExportReport(Record):
    """Report of an export."""

    version: str
    path: str
    files: tuple[str, ...]
    merged: bool
    """True if the adapter was merged into the base model."""
    fingerprint: FingerprintReport | None = None
    """Comparison of merged weights, loaded from `path`, with the fingerprint; `None` if nothing was merged, or the
    version has none."""
    warnings: tuple[str, ...] = ()


@checked
def export_version(
    run: str | Path, version: str, out: str | Path, *, merged: bool = False, tolerance: NotNegative = TOLERANCE
) -> ExportReport:
    """Write the weights of a version into a directory, with its model card and its report as `policy_card.json`.

    An adapter is written as PEFT loads it, with the base model's public name in place of a path. Full weights are
    copied.

    Args:
        out: new or empty directory.
        merged: merge an adapter into its base model, and check the result: it is loaded from `out`.
        tolerance: limit of the mean gap to the fingerprint, in nats per token.

    Raises:
        ConfigError: there is no such run or version, it is the base, `out` has files or cannot be written, the base
            model cannot be loaded, or an extra is missing.
        RecordError: the version's files are not those that were trained.
        DeployError: they are damaged, or the merged weights do not have the fingerprint.
    """
    registry, out = Registry(run), Path(out)
    report = describe(run, version)
    card = registry.card(version)
    if card.kind == "base":
        raise ConfigError(f"{version} is the base model, {card.base_model}; name a version that was trained")
    checkpoint = _sound(registry, card)
    merges = merged and checkpoint.adapter_dir is not None
    with _filling(out) as partial:
        found = None
        if merges:
            found = _merge(registry, card, partial, tolerance)
        else:
            source = checkpoint.adapter_dir or Path(checkpoint.model)
            with disk_errors(out):
                shutil.copytree(source, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(README))
            if checkpoint.adapter_dir is not None:
                config = {**read_json(source / ADAPTER_CONFIG), "base_model_name_or_path": public_name(card.base_model)}
                write_atomically(partial / ADAPTER_CONFIG, json.dumps(config, indent=2))
        write_atomically(partial / README, model_card(report, merged=merges))
        write_atomically(partial / CARD_FILE, public(report).model_dump_json(indent=2))
    warnings = ()
    if merges and found is None:
        warnings = (f"{version} has no fingerprint: nobody checked that the merged weights are its own",)
    elif found is not None and found.verdict == "indistinguishable":
        warnings = (
            f"the merged weights are {found.gap:.3g} nats per token from {version} and {found.parent_gap:.3g} from its "
            "parent: the base model's precision rounds small changes away",
        )
    files = tuple(sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()))
    return ExportReport(
        version=version, path=str(out), files=files, merged=merges, fingerprint=found, warnings=warnings
    )


def _sound(registry: Registry, card: PolicyCard) -> Checkpoint:
    """Return a version's weights, whose hashes and shapes are right."""
    directory = registry.version_dir(card.version)
    provenance, hashes = read_provenance(directory), weight_hashes(directory)
    changed = [name for name, sha in (provenance.weights if provenance else {}).items() if hashes.get(name) != sha]
    if changed:
        raise RecordError(
            f"{directory / changed[0]} is not the file that was trained; copy the version again, or train it anew"
        )
    checkpoint = Checkpoint.of(card, directory).absolute()
    if checkpoint.adapter_dir is None:
        check_weights(checkpoint.model, card.base_path)
    else:
        check_adapter(checkpoint.adapter_dir, card.base_path)
    return checkpoint


def _merge(registry: Registry, card: PolicyCard, directory: Path, tolerance: float) -> FingerprintReport | None:
    """Merge an adapter into its base, and load the result to compare it with the fingerprint."""
    require_extra("peft", "train")
    from r3agent.train.config import PolicyStart
    from r3agent.train.merged import logprobs_of, write_merged

    model = write_merged(PolicyStart.of(card, registry.version_dir(card.version)), directory)
    with disk_errors(directory):
        for path in model.iterdir():
            path.rename(directory / path.name)
        model.rmdir()
    logprobs = logprobs_of(directory, [s.token_ids_T for s in card.fingerprint])
    if not card.fingerprint:
        return None
    by_sequence = dict(zip((s.token_ids_T for s in card.fingerprint), logprobs, strict=True))
    places = places_of(card.fingerprint)
    found = recognise(card.version, places, [by_sequence[s.token_ids_T][t] for s, t in places], tolerance=tolerance)
    if found.verdict in ("old", "other"):
        raise DeployError(
            f"{card.version}: the logprobs of the merged weights are {found.gap:.3g} nats per token from its own, the "
            f"limit is {tolerance:g}: is {card.base_model} the model that it was trained from?"
        )
    return found


@contextmanager
def _filling(out: Path) -> Generator[Path]:
    """Yield a directory to fill within a new or empty one; what is in it moves up if the block succeeds.

    Raises:
        ConfigError: `out` is a file, has files, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a new or empty directory")
    with disk_errors(out):
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        if first := next(out.iterdir(), None):
            raise ConfigError(f"{out} is not empty, it has {first.name}; name a new or empty directory")
        partial = Path(mkdtemp(prefix=".incomplete-", dir=out))
    try:
        yield partial
        with disk_errors(out):
            for path in partial.iterdir():
                path.rename(out / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # not empty: the export succeeded
                out.rmdir()
