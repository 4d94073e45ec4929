"""Start the server of `r3agent serve`: choose its engine and options, in this process or as a child."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r3agent._util.files import disk_errors
from r3agent.errors import ConfigError
from r3agent.serve.config import ServeConfig
from r3agent.serve.process.embedded import ServerProcess
from r3agent.serve.process.options import EMBEDDED, ServerOptions
from r3agent.serve.process.supervise import supervise
from r3agent.serve.process.vllm import VLLMProcess

PASSED_ON = ("host", "dtype", "max_model_len", *EMBEDDED)
"""Options that are passed to the server's command line unchanged."""


def launch(
    model: str,
    options: ServerOptions,
    config: ServeConfig,
    *,
    further: Sequence[str] = (),
    run_dir: Path | None = None,
    log: Path | None = None,
    lora_rank: int | None = None,
) -> None:
    """Serve until SIGINT; `r3agent` converts SIGTERM to it.

    Args:
        model: checkpoint directory, hub id or `bundled`.
        further: options for vLLM, after those of the config.
        run_dir: run that the server belongs to. The embedded server is a child only if it has a log or a run.
        log: file for a child's output; default in the run, or a temporary file.
        lora_rank: rank of the run's adapters, 0 if it trains full weights; `None` without a run.

    Raises:
        EndpointError: the server did not start, or ended by itself.
        ConfigError: the settings are invalid, e.g. an option belongs to the other engine.
    """
    engine = config.engine
    if wrong := _misplaced(options, config, further):
        raise ConfigError(wrong)
    if not 0 <= options.port < 2**16:
        raise ConfigError(f"--port {options.port}: must be 0 to 65535")
    if not options.host.strip():
        raise ConfigError(f"--host {options.host!r}: name an address; 0.0.0.0 listens on all of this machine")
    if engine == "embedded" and run_dir is None and log is None:
        from r3agent.serve import serve

        serve(model, **options.model_dump(exclude_none=True))
        return
    if log is None and run_dir is not None:
        log = run_dir / "servers" / f"{engine}-{os.getpid()}.log"
    if log is not None:
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
    argv = ["--engine", engine, *options.words(PASSED_ON)]
    common: dict[str, Any] = {"name": options.name, "port": options.port, "api_key": options.api_key, "log_path": log}
    if engine == "embedded":
        server = ServerProcess(model, options=options.words(PASSED_ON), **common)
    else:
        further = [*config.options, *further]
        server = VLLMProcess(
            model,
            host=options.host,
            python=config.vllm_python,
            lora_rank=lora_rank,
            options=[*options.words(name for name in PASSED_ON if name != "host"), *further],
            **common,
        )
        argv += ["--vllm-python", server.python, "--set", f"serve.options={json.dumps(further)}"]
    if run_dir is not None:
        argv += ["--run", str(run_dir.resolve())]
    supervise(server, run_dir=run_dir, argv=argv)


def _misplaced(options: ServerOptions, config: ServeConfig, further: Sequence[str]) -> str:
    """Return a message that names options of the other engine, or an empty string."""
    if config.engine == "vllm":
        wrong = " ".join(options.words(EMBEDDED))
        return wrong and f"{wrong}: only the embedded server has this; vLLM's own options come after --"
    return f"{' '.join(further)}: only vLLM has this; pass --engine vllm" if further else ""
