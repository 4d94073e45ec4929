"""Policy versions: immutable directories with a card, and a pointer to the live version.

    RUN/policies/v0000/card.json            the base policy; its weights are not copied
    RUN/policies/v0001/card.json + adapter/ a trained LoRA adapter, or model/ for full weights
    RUN/live.json                           {"version": "v0001", "previous": "v0000", …}, replaced atomically
    RUN/live.swapped                        exists while other weights replace the live ones, or after a kill meanwhile

A directory is a version only if it has a card: `create_version` fills a temporary directory and renames it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias
from warnings import warn

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from r3agent._util.checked import checked
from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.lock import file_lock
from r3agent.errors import ConfigError, RecordError
from r3agent.records import versions
from r3agent.records.trajectory import Record, VersionedRecord
from r3agent.records.versions import version_number
from r3agent.store.history import GATE, PERSON, last_event
from r3agent.store.live_pointer import LivePointer
from r3agent.store.models import resolve_model
from r3agent.store.reading import read_record

CARD_FILE = "card.json"
ADAPTER_DIR = "adapter"
MODEL_DIR = "model"
"""Folder of full weights in a version's directory; an adapter is in `ADAPTER_DIR`."""

MAX_PROMPT = 256
"""Largest number of prompt tokens, those at its end, with which a sequence of a fingerprint begins."""

PolicyKind: TypeAlias = Literal["base", "lora", "full"]


class FingerprintSequence(Record):
    """Part of a weight fingerprint: a fixed token sequence with its logprobs, computed by training."""

    token_ids_T: tuple[int, ...] = Field(min_length=2)
    logprobs_T: tuple[float, ...]
    """Values of log p(token t | tokens before t) at temperature 1; position 0 has no context and holds 0.0."""
    parent_logprobs_T: tuple[float, ...] | None = None
    """Logprobs under the weights that training started from; a server that returns these has the old weights."""
    positions_K: tuple[int, ...] | None = None
    """Positions to measure: trained tokens whose logprobs differ most between the two weights. `None`: any position."""

    @model_validator(mode="after")
    def _aligned(self) -> FingerprintSequence:
        lengths = {len(x) for x in (self.token_ids_T, self.logprobs_T, self.parent_logprobs_T) if x is not None}
        if len(lengths) != 1:
            raise ValueError(f"fingerprint of lengths {sorted(lengths)}: ids and logprobs must align one to one")
        if wrong := [t for t in self.positions_K or () if not 0 < t < len(self.token_ids_T)]:
            raise ValueError(f"position {wrong[0]} of a fingerprint of {len(self.token_ids_T)} tokens")
        return self


class PolicyCard(VersionedRecord):
    """Description of a policy version: its kind, its origin and its fingerprint."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_version: Literal[1] = 1
    version: str = Field(pattern=f"^{versions.PATTERN}$")
    """Name of the version: `v0000`, `v0001`, ..."""
    name: str
    """Served name of the base model."""
    kind: PolicyKind
    base_model: str
    """Directory or hub id of the base model's weights; `bundled` is the model in the package."""
    parent: str | None = None
    """Version that training started from, which also sampled the rows."""
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    fingerprint: tuple[FingerprintSequence, ...] = Field(
        default=(), validation_alias=AliasChoices("fingerprint", "canary"), serialization_alias="canary"
    )
    """Sequences that identify the version's weights on a server; stored as `canary`."""

    @model_validator(mode="after")
    def _descends(self) -> PolicyCard:
        if self.parent is not None and version_number(self.parent) >= version_number(self.version):
            raise ValueError(f"parent {self.parent} of {self.version}: a parent is an earlier version")
        return self

    @property
    def canary(self) -> tuple[FingerprintSequence, ...]:
        """Deprecated alias of `fingerprint`."""
        warn("PolicyCard.canary is now fingerprint; canary is removed in 0.3", DeprecationWarning, stacklevel=2)
        return self.fingerprint

    @property
    def served_name(self) -> str:
        """Name on a server that takes adapters: `NAME@v0007` for one, `NAME` for weights that are reloaded in place."""
        return f"{self.name}@{self.version}" if self.kind == "lora" else self.name

    @property
    def base_path(self) -> str:
        """Directory or hub id for loading the base model on this machine."""
        return resolve_model(self.base_model)


def checkpoints_dir(version_dir: Path) -> Path:
    """Return the directory of a version's training checkpoints, which is removed when the version is complete."""
    return version_dir.with_name(version_dir.name + ".checkpoints")


class Registry:
    """The policy versions of one run directory."""

    @checked
    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)
        self.policies_dir = self.run_dir / "policies"
        self.live_path = self.run_dir / "live.json"
        self.swapped_path = self.run_dir / "live.swapped"

    # ---- versions ----

    def versions(self) -> list[str]:
        """List the versions, oldest first, ignoring directories without a card."""
        names = [path.parent.name for path in self.policies_dir.glob(f"v*/{CARD_FILE}")]
        return sorted(filter(versions.is_version, names), key=version_number)

    def next_version(self) -> str:
        """Return the version after the newest directory, complete or not."""
        numbers = [version_number(p.name) for p in self.policies_dir.glob("v*") if versions.is_version(p.name)]
        return versions.version_name(max(numbers, default=-1) + 1)

    def has_checkpoint(self, version: str) -> bool:
        """Return True if the version has an interrupted training that can be resumed."""
        return any(checkpoints_dir(self.version_dir(version)).glob("checkpoint-[0-9]*"))

    def version_dir(self, version: str) -> Path:
        return self.policies_dir / version

    def card(self, version: str) -> PolicyCard:
        """Read the card of a version.

        Raises:
            ConfigError: there is no such version.
            RecordError: the card cannot be read.
            SchemaVersionError: another version of r3agent wrote it.
        """
        path = self.version_dir(version) / CARD_FILE
        if not path.exists():
            first = shlex.join(["r3agent", "collect", "--run", str(self.run_dir)])
            none = f"no versions yet; `{first}` makes v0000 of the base model, and `r3agent train` the later ones"
            found = f"{', '.join(known)}; name one of them" if (known := self.versions()) else none
            raise ConfigError(f"{version!r}: {self.policies_dir} has {found}")
        card = read_record(PolicyCard, path)
        if card.version != version:
            raise RecordError(f"{path} is the card of {card.version}: the directory was renamed; rename it back")
        return card

    def base(self, name: str, base_model: str) -> PolicyCard:
        """Return the card of v0000, or the one that it will have; nothing is written.

        Raises:
            ConfigError: the run belongs to another base model.
        """
        if Path(base_model).is_dir():
            base_model = str(Path(base_model).resolve())
        if versions.BASE in self.versions():
            card = self.card(versions.BASE)
            if (card.name, card.base_model) != (name, base_model):
                raise ConfigError(
                    f"{name!r} from {base_model}: {self.run_dir} belongs to {card.name!r} from {card.base_model}; "
                    "use another run directory"
                )
            return card
        return PolicyCard(version=versions.BASE, name=name, kind="base", base_model=base_model)

    def add_base(self, name: str, base_model: str) -> PolicyCard:
        """Return the card of v0000, and write it if it is missing; errors are those of `base`."""
        card = self.base(name, base_model)
        if card.version not in self.versions():
            with create_version(self.version_dir(card.version)) as directory:
                write_card(directory, card)
        return card

    @property
    def live(self) -> str | None:
        return None if (pointer := self._pointer()) is None else pointer.version

    @property
    def previous(self) -> str | None:
        return None if (pointer := self._pointer()) is None else pointer.previous

    @property
    def live_base_url(self) -> str | None:
        """Base URL of the live version's server, if it differs from the run's settings."""
        return None if (pointer := self._pointer()) is None else pointer.base_url

    @property
    def passed(self) -> tuple[str, ...]:
        """Versions that became live because they passed the gate; others were deployed by hand."""
        return () if (pointer := self._pointer()) is None else pointer.passed

    @property
    def merges_adapters(self) -> bool:
        """True if the live version's server takes no adapters: all versions are weights in place, under one name."""
        return False if (pointer := self._pointer()) is None else pointer.merges_adapters

    def served_name(self, card: PolicyCard) -> str:
        """Return the name of a version on the live version's server."""
        return card.name if self.merges_adapters else card.served_name

    def _pointer(self) -> LivePointer | None:
        return read_record(LivePointer, self.live_path) if self.live_path.exists() else None

    def set_live(
        self, version: str, *, base_url: str | None = None, passed: bool = False, merges_adapters: bool | None = None
    ) -> None:
        """Move the pointer atomically; without `base_url` the address does not change.

        Args:
            passed: the version passed the gate.
            merges_adapters: the server takes no adapters; default as before.
        """
        live, previous = self.live, self.previous
        pointer = LivePointer(
            version=version,
            previous=previous if live == version else live,
            base_url=base_url or self.live_base_url,
            passed=tuple(dict.fromkeys([*self.passed, *([version] if passed else [])])),
            merges_adapters=self.merges_adapters if merges_adapters is None else merges_adapters,
        )
        write_atomically(self.live_path, pointer.model_dump_json(indent=2))

    def rollback_target(self, to: str | None = None) -> str:
        """Return the version to roll back to.

        It is `to`, or else the previous live version if it is older than the live one, or else the live one's parent.

        Raises:
            ConfigError: nothing is live, `to` is not older than the live version, or there is no older version.
        """
        if (live := self.live) is None:
            raise ConfigError(f"{self.live_path}: nothing is live, so there is nothing to roll back; deploy first")
        if to is None:
            earlier = filter(None, (self.previous, self.card(live).parent))
            older = [version for version in earlier if version_number(version) < version_number(live)]
            if not older:
                back = last_event(self.policies_dir, live, "deployed", "rolled_back")
                why = ""
                if back is not None and back.event == "rolled_back" and back.other is not None:
                    who = {GATE: "the gate", PERSON: "a person"}.get(back.by, back.by)
                    why = f" because {who} rolled {back.other} back,"
                raise ConfigError(f"{live} is live{why} and nothing came before it; name a version to deploy instead")
            return older[0]
        if version_number(self.card(to).version) >= version_number(live):
            raise ConfigError(f"{to} is not older than {live}, which is live; deploy {to} instead")
        return to


@contextmanager
def create_version(version_dir: Path) -> Generator[Path]:
    """Yield a directory to fill; it is renamed to `version_dir` if the block succeeds and removed if it fails.

    Raises:
        ConfigError: the version already exists, or cannot be written.
        BusyError: another process is creating a version of the same run.
    """
    partial = version_dir.with_name(version_dir.name + ".partial")
    with file_lock(version_dir.with_name(".growing.lock"), f"making {version_dir.name}"):
        if version_dir.exists():
            raise ConfigError(f"{version_dir} exists, and policy versions are immutable; choose the next version")
        with disk_errors(partial):
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
        try:
            yield partial
            if not (partial / CARD_FILE).is_file():
                raise RuntimeError(f"{version_dir.name} has no card: `write_card` makes a directory a version")
            with disk_errors(version_dir):
                partial.rename(version_dir)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def write_card(directory: Path, card: PolicyCard) -> None:
    """Write the card, which makes a directory a version.

    Raises:
        ConfigError: the card cannot be written.
    """
    write_atomically(directory / CARD_FILE, card.model_dump_json(indent=2))
