"""Load a LoRA adapter beside the base model under a name that is never reused, and unload old adapters.

With immutable names a server never answers from another version's KV cache (vllm#42125), and running requests finish
on the version that they started with. vLLM reads an adapter again after dropping it from memory, so a version's
directory must stay in place while it is served.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from r3agent._util.wait import wait_until
from r3agent.deploy.server import Server
from r3agent.deploy.update import UNCHANGED, WeightUpdate
from r3agent.errors import DeployError
from r3agent.store.registry import Registry

POLL_S = 0.2
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass
class LoraLoad(WeightUpdate):
    """Load one adapter; if one of that name is served already, refuse another run's and let the fingerprint decide."""

    was_served: bool = False
    loaded: bool = False

    def apply(self, server: Server) -> Server:
        name, adapter_dir = self.checkpoint.card.served_name, self.checkpoint.adapter_dir
        assert adapter_dir is not None, "the version is an adapter"
        sources = server.sources()
        self.was_served = name in sources
        if self.was_served:
            _refuse_adapter_of_another_run(name, sources[name], adapter_dir, server)
        else:
            server.load_adapter(name, adapter_dir)
            self.loaded = True
        return server

    def undo(self, server: Server) -> str:
        name = self.checkpoint.card.served_name
        if self.was_served:
            return f"{name} was served before: unload it or restart the server, then deploy again"
        if self.loaded:
            server.unload_adapter(name)
        return UNCHANGED


def unload_old(server: Server, registry: Registry, *, keep: int, in_use: str, drain_s: float = 60.0) -> list[str]:
    """Unload this run's adapters beyond `keep`, each after its requests have finished.

    The live version and `in_use` always stay; then the previous one has priority, then the newest.

    Returns:
        The unloaded served names; an adapter that is still in use after `drain_s` seconds stays loaded.
    """
    order = [registry.live, in_use, registry.previous, *reversed(registry.versions())]
    cards = [registry.card(version) for version in dict.fromkeys(order) if version is not None]
    served = server.models()
    adapters = [card for card in cards if card.kind == "lora" and card.served_name in served]
    old = [card.served_name for card in adapters[keep:] if card.version not in (registry.live, in_use)]

    def is_unused(name: str) -> bool:
        # A server that does not report its load, such as the embedded one, drains by itself.
        return (load := server.load()) is None or name not in load.adapters

    unused = [n for n in old if wait_until(partial(is_unused, n), timeout_s=drain_s, poll_s=POLL_S)]
    for name in unused:
        server.unload_adapter(name)
    return unused


def _refuse_adapter_of_another_run(name: str, source: str | None, adapter_dir: Path, server: Server) -> None:
    """Refuse a name that another run uses: every run has a v0001, and fingerprints of barely trained ones agree."""
    theirs, ours = Path(source or "") / ADAPTER_FILE, adapter_dir / ADAPTER_FILE
    # A directory that no longer exists may be this run's own, before it was moved.
    if source and theirs.is_file() and not filecmp.cmp(theirs, ours, shallow=False):
        raise DeployError(
            f"{name} on {server.root} is the adapter of another run, {source}; "
            "give each run its own server, or another policy.model"
        )
