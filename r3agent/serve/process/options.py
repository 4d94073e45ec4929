"""Options of `r3agent serve`, from which its command line and those of the servers are made."""

from __future__ import annotations

from collections.abc import Iterable

from r3agent.records.trajectory import Record

API_KEY_VARIABLE = "R3AGENT_SERVE_API_KEY"
"""Environment variable of the server's API key; other users of the machine can read a command line."""


class EngineOptions(Record):
    """Options of every engine."""

    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1 accepts only local clients."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""
    name: str | None = None
    """Served name of the model; default the directory's name."""
    api_key: str | None = None
    """API key that clients must send; default $R3AGENT_SERVE_API_KEY, which other users cannot see."""
    dtype: str | None = None
    """Data type of the weights, e.g. bfloat16; embedded server: default float32 on a CPU, else the checkpoint's."""
    max_model_len: int | None = None
    """Maximum tokens of prompt and completion together; default the model's limit."""


class ServerOptions(EngineOptions):
    """Options of every engine, and of the embedded server, with the same defaults as `serve`."""

    device: str | None = None
    """Device of the embedded server; default cuda if available."""
    max_batch: int | None = None
    """Maximum completions at the same time in the embedded server; default 256."""
    max_waiting: int | None = None
    """Maximum completions in the embedded server's queue; default 4096."""
    kv_cache_gib: float | None = None
    """KV cache of the embedded server, in GiB; default 4."""
    threads: int | None = None
    """Torch threads of the embedded server; default one less than torch would use, or than a container's quota."""

    def words(self, names: Iterable[str]) -> list[str]:
        """Return the named options that have a value as command-line arguments."""
        values = ((name, getattr(self, name)) for name in names)
        return [
            word for name, value in values if value is not None for word in (f"--{name.replace('_', '-')}", str(value))
        ]


EMBEDDED = [name for name in ServerOptions.model_fields if name not in EngineOptions.model_fields]
"""Options of the embedded server alone."""
