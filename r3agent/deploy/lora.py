"""Load a LoRA adapter beside the base model under a name that is never reused, and unload old adapters.

With immutable names a server never answers from another version's KV cache (vllm#42125), and running requests finish
on the version that they started with. vLLM reads an adapter again after dropping it from memory, so a version's
directory must stay in place while it is served.

Names alone identify nothing: every run has a v0001, and a deleted run may be made anew. So the server gets a path that
contains a hash of the adapter's files, a link beside them, and reports it in /v1/models as the adapter's `root`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from r3agent._util.files import disk_errors
from r3agent._util.wait import wait_until
from r3agent.deploy.fingerprint import FingerprintReport
from r3agent.deploy.server import Server
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError
from r3agent.store.registry import ADAPTER_DIR, PolicyCard, Registry

POLL_S = 0.2
ADDRESSED = re.compile(rf"{ADAPTER_DIR}-[0-9a-f]{{16}}")
"""Name of a link whose path identifies an adapter by its content."""


@dataclass
class LoraLoad(WeightUpdate):
    """Load one adapter; if one of that name is served already, it must be the same by its path or its fingerprint."""

    served_from: str | None = None
    """Source of the adapter that was served before under this name."""
    is_same: bool = False
    loaded: bool = False

    def apply(self, server: Server) -> Server:
        name, adapter_dir = self.checkpoint.card.served_name, self.checkpoint.adapter_dir
        assert adapter_dir is not None, "the version is an adapter"
        path, sources = addressed(adapter_dir), server.sources()
        if name not in sources:
            server.load_adapter(name, path)
            self.is_same = self.loaded = True
            return server
        source = sources[name]
        self.served_from = source or "an unknown path"
        self.is_same = source is not None and Path(source).name == path.name
        if not self.is_same and source is not None and _has_other_content(Path(source), path):
            raise DeployError(f"{name} on {server.root} is an adapter with other weights than this version's")
        return server

    def confirm(self, report: FingerprintReport | None) -> None:
        if not self.is_same and (report is None or report.verdict != "arrived"):
            raise DeployError(
                f"{self.checkpoint.card.served_name}: neither the path nor the fingerprint of the served adapter tells "
                "whether it has this version's weights"
            )

    def undo(self, server: Server) -> str:
        name = self.checkpoint.card.served_name
        if self.served_from is not None:
            return (
                f"{name} was served before, from {self.served_from}: unload it or restart the server, then deploy "
                "again; if another run needs it, give each run its own server or policy.model"
            )
        if self.loaded:
            server.unload_adapter(name)
        return UNCHANGED


def addressed(adapter_dir: Path) -> Path:
    """Return a path of an adapter that contains the hash of its files: a link beside it, made if missing.

    Raises:
        ConfigError: the link cannot be made.
    """
    adapter_dir = adapter_dir.resolve()
    path = adapter_dir.with_name(f"{ADAPTER_DIR}-{_digest(adapter_dir)}")
    with disk_errors(path), suppress(FileExistsError):
        path.symlink_to(adapter_dir.name, target_is_directory=True)
    return path


def unload_old(server: Server, registry: Registry, *, keep: int, in_use: str, drain_s: float = 60.0) -> list[str]:
    """Unload this run's adapters beyond `keep`, each after its requests have finished.

    An adapter that another run loaded under the same name stays, and so does one whose path the server does not report.
    The live version and `in_use` always stay; then the previous one has priority, then the newest.

    Returns:
        The unloaded served names; an adapter that is still in use after `drain_s` seconds stays loaded.
    """
    order = [registry.live, in_use, registry.previous, *reversed(registry.versions())]
    cards = [registry.card(version) for version in dict.fromkeys(order) if version is not None]
    served = server.sources()
    adapters = [c for c in cards if c.kind == "lora" and _is_own(served.get(c.served_name), c, registry)]
    old = [card.served_name for card in adapters[keep:] if card.version not in (registry.live, in_use)]

    def is_unused(name: str) -> bool:
        # A server that does not report its load, such as the embedded one, drains by itself.
        return (load := server.load()) is None or name not in load.adapters

    unused = [n for n in old if wait_until(partial(is_unused, n), timeout_s=drain_s, poll_s=POLL_S)]
    for name in unused:
        server.unload_adapter(name)
    return unused


def _is_own(source: str | None, card: PolicyCard, registry: Registry) -> bool:
    """Return True if an adapter was loaded from this run, also if the run was moved since."""
    if source is None:
        return False
    version_dir, path = registry.version_dir(card.version).resolve(), Path(source)
    was_moved = ADDRESSED.fullmatch(path.name) and not path.exists() and (version_dir / path.name).exists()
    return path.parent == version_dir or bool(was_moved)


def _has_other_content(theirs: Path, ours: Path) -> bool:
    """Compare an adapter's source with an addressed path; False if nothing is known."""
    if ADDRESSED.fullmatch(theirs.name):
        return True
    try:
        return _digest(theirs) != _digest(ours)
    except OSError:
        return False


def _digest(adapter_dir: Path) -> str:
    """Hash an adapter's tensors and configuration to 16 hexadecimal digits."""
    content = sha256()
    for path in sorted(p for p in adapter_dir.iterdir() if p.suffix in (".safetensors", ".json")):
        content.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
    return content.hexdigest()[:16]
