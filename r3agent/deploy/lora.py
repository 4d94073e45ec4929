"""Load a LoRA adapter beside the base under a name that no other version ever gets, and unload old ones.

Immutable names keep a server from answering with the cached keys and values of another version (vllm#42125), and
let the requests under way end on the version they began with. vLLM reads an adapter again from its directory when
it has dropped it from memory, so a version's directory stays where it is as long as it is served.
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
    """Load one adapter; one that is served already is left for the fingerprint to judge, unless it is another run's."""

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


def unload_old(server: Server, registry: Registry, *, keep: int, drain_s: float = 60.0) -> list[str]:
    """Unload adapters of this run beyond `keep`, each when its requests are done.

    The live one and the one before stay first, then the newest.

    Returns:
        The served names that are gone; one that is still in use after `drain_s` seconds stays.
    """
    order = [registry.live, registry.previous, *reversed(registry.versions())]
    cards = [registry.card(version) for version in dict.fromkeys(order) if version is not None]
    served = server.models()
    adapters = [card.served_name for card in cards if card.kind == "lora" and card.served_name in served]

    def is_unused(name: str) -> bool:
        # A server that does not tell its load drains by itself, as the embedded one does.
        return (load := server.load()) is None or name not in load.adapters

    unused = [n for n in adapters[keep:] if wait_until(partial(is_unused, n), timeout_s=drain_s, poll_s=POLL_S)]
    for name in unused:
        server.unload_adapter(name)
    return unused


def _refuse_adapter_of_another_run(name: str, source: str | None, adapter_dir: Path, server: Server) -> None:
    """The fingerprint cannot tell versions apart that have hardly learnt, and every run has a v0001."""
    theirs, ours = Path(source or "") / ADAPTER_FILE, adapter_dir / ADAPTER_FILE
    # One that is not there any more may be this run's own, before it was moved.
    if source and theirs.is_file() and not filecmp.cmp(theirs, ours, shallow=False):
        raise DeployError(
            f"{name} on {server.root} is the adapter of another run, {source}; "
            "serve every run by a server of its own, or under another policy.model"
        )
