"""`r3agent serve`: serve a model with the embedded server or with vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent.cli.command import Output, Overrides, flags_of, verb
from r3agent.errors import ConfigError
from r3agent.serve.config import ServeConfig
from r3agent.serve.process.launch import launch
from r3agent.serve.process.options import ServerOptions

ENGINE = flags_of("serve", ServeConfig, {"--engine": "engine", "--vllm-python": "vllm_python"})
DEFAULTS = ServerOptions()


@verb(*ENGINE)
def serve(
    model: Annotated[
        str, Parameter(help="Checkpoint directory, hub id, `bundled`, or `bundled-steps`, which calls tools.")
    ] = "bundled",
    /,
    *,
    overrides: Overrides,
    further: Annotated[tuple[str, ...], Parameter(parse=False)] = (),
    options: Annotated[ServerOptions, Parameter(name="*", group="Server")] = DEFAULTS,
    log: Annotated[
        Path | None, Parameter(help="File for the server's output; vLLM's default is in the run or a temporary file.")
    ] = None,
    run: Annotated[
        Path | None,
        Parameter(help="Run directory: read [serve] of its r3.toml, and register the server's address in servers/."),
    ] = None,
) -> Output:
    config, lora_rank = _config(run, overrides)
    if config.engine == "embedded" and (python := overrides.get("serve.vllm_python")):
        raise ConfigError(f"--vllm-python {python}: only vLLM has this; pass --engine vllm")
    launch(model, options, config, further=further, run_dir=run, log=log, lora_rank=lora_rank)
    return Output({}, "stopped")


def _config(run: Path | None, overrides: Overrides) -> tuple[ServeConfig, int | None]:
    """Return the settings of the server, and the rank of the run's adapters, 0 if it trains full weights."""
    if run is None and not overrides:
        return ServeConfig(), None  # skips the import of all other sections, because server processes start this way
    from r3agent.run.config import CONFIG_FILE, load_config

    file = None if run is None else run / CONFIG_FILE
    config = load_config(file if file and file.exists() else None, overrides)
    if run is None:
        return config.serve, None
    return config.serve, config.train.lora_r if config.train.method == "lora" else 0
