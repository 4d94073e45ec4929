"""Options of `r3agent serve`, each written once: the command line and what is passed on to a server come from here."""

from __future__ import annotations

from collections.abc import Iterable

from r3agent.records.trajectory import Record

API_KEY_VARIABLE = "R3AGENT_SERVE_API_KEY"
"""Where the server finds its key: a command line can be read by everybody on the machine."""


class EngineOptions(Record):
    """Options that every engine understands."""

    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1 is this machine only."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """Name that the model is served under; default the directory's name."""
    api_key: str | None = None
    """Key that clients must send; default $R3AGENT_SERVE_API_KEY, which other users cannot see."""
    dtype: str | None = None
    """Type of the weights, e.g. bfloat16; embedded: default float32 on a CPU, else the checkpoint's."""
    max_model_len: int | None = None
    """Tokens of prompt and completion; default the model's limit."""


class ServerOptions(EngineOptions):
    """Options of every engine, and those of the embedded server, whose defaults are the ones of `serve`."""

    device: str | None = None
    """Device of the embedded server; default cuda where there is one."""
    max_batch: int | None = None
    """Completions at the same time in the embedded server; default 256."""
    max_waiting: int | None = None
    """Completions in the embedded server's queue; default 4096."""
    kv_cache_gib: float | None = None
    """Memory for keys and values in the embedded server; default 4."""
    threads: int | None = None
    """Threads of torch in the embedded server; default all but one of torch's own choice."""

    def words(self, names: Iterable[str]) -> list[str]:
        """Return the options that have a value as words of a command line."""
        values = ((name, getattr(self, name)) for name in names)
        return [
            word for name, value in values if value is not None for word in (f"--{name.replace('_', '-')}", str(value))
        ]


EMBEDDED = [name for name in ServerOptions.model_fields if name not in EngineOptions.model_fields]
"""Options that only the embedded server understands."""
