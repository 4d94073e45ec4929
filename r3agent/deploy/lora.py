"""A LoRA adapter, loaded beside the base under a name that no other version ever gets.

Immutable names keep a server from answering with the cached keys and values of another version (vllm#42125), and
let the requests under way end on the version they began with. vLLM reads an adapter again from its directory when
it has dropped it from memory, so a version's directory stays where it is as long as it is served.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path

from r3agent._util.wait import wait_until
from r3agent.deploy.server import Server
from r3agent.deploy.weights import check_checkpoint
from r3agent.errors import DeployError
from r3agent.store.checkpoint import Checkpoint
from r3agent.store.registry import Registry

POLL_S = 0.2
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass
class LoraLoad:
    """Load one adapter; one that is served already is left for the canary to judge, unless it is another run's."""

    checkpoint: Checkpoint
    was_served: bool = False
    loaded: bool = False

    def check(self) -> None:
        check_checkpoint(self.checkpoint)

    @property
    def adapter_dir(self) -> Path:
        assert self.checkpoint.adapter_dir is not None, "the version is an adapter"
        return self.checkpoint.adapter_dir

    def apply(self, server: Server) -> Server:
        name, sources = self.checkpoint.card.served_name, server.sources()
        self.was_served = name in sources
        if self.was_served:
            self._refuse_another_run(server, sources[name])
        else:
            server.load_adapter(name, self.adapter_dir)
            self.loaded = True
        return server

    def undo(self, server: Server) -> str:
        name = self.checkpoint.card.served_name
        if self.was_served:
            return f"{name} was served before: unload it or restart the server, then deploy again"
        if self.loaded:
            server.unload_adapter(name)
        return "the server is as it was"

    def finish(self, server: Server) -> None:
        pass

    def _refuse_another_run(self, server: Server, source: str | None) -> None:
        """The canary cannot tell versions apart that have hardly learnt, and every run has a v0001."""
        theirs, ours = (Path(directory or "") / ADAPTER_FILE for directory in (source, self.adapter_dir))
        # One that is not there any more may be this run's own, before it was moved.
        if source and theirs.is_file() and not filecmp.cmp(theirs, ours, shallow=False):
            raise DeployError(
                f"{self.checkpoint.card.served_name} on {server.root} is the adapter of another run, {source}; "
                "serve every run by a server of its own, or under another policy.model"
            )


def unload_old(server: Server, registry: Registry, *, keep: int, drain_s: float = 60.0) -> list[str]:
    """Unload adapters of this run beyond `keep`, each when its requests are done: the live one and the one before stay
    first, then the newest.

    Returns: the served names that are gone; one that is still in use after `drain_s` seconds stays.
    """
    order = [registry.live, registry.previous, *reversed(registry.versions())]
    cards = [registry.card(version) for version in dict.fromkeys(order) if version is not None]
    served = server.models()
    adapters = [card.served_name for card in cards if card.kind == "lora" and card.served_name in served]
    unused = [name for name in adapters[keep:] if _drained(server, name, drain_s)]
    for name in unused:
        server.unload_adapter(name)
    return unused


def _drained(server: Server, name: str, drain_s: float) -> bool:
    """Whether nobody uses the adapter; a server that does not tell drains by itself, as the embedded one does."""

    def is_unused() -> bool:
        return (busy := server.busy_with()) is None or name not in busy.adapters

    return wait_until(is_unused, timeout_s=drain_s, poll_s=POLL_S)
