"""What `r3agent serve` does with its flags: which engine, with which options, and whether as a child."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r3agent._util.files import disk_errors
from r3agent.errors import ConfigError
from r3agent.serve.process.embedded import ServerProcess
from r3agent.serve.process.flags import EMBEDDED, settings, words
from r3agent.serve.process.supervise import supervise
from r3agent.serve.process.vllm import VLLMProcess

BOTH = ("--host", "--dtype", "--max-model-len")
"""Flags of both engines that go onto the server's command line as they are, like all of `EMBEDDED`."""


def launch(options: Namespace, *, engine: str, vllm_python: str, vllm_options: Sequence[str]) -> None:
    """Serve until SIGINT, which `r3agent` makes of SIGTERM as well.

    Args:
        options: of `r3agent serve`; `further` has what came after `--`.
        engine: `embedded` or `vllm`; the embedded one is a child only if it has a log or belongs to a run.
        vllm_python: empty means find it.
        vllm_options: those of the run's settings.

    Raises:
        EndpointError: the server did not start, or ended by itself.
        ConfigError: it cannot be started like this, e.g. a flag belongs to the other engine.
    """
    if wrong := _of_the_other_engine(options, engine):
        raise ConfigError(wrong)
    run_dir, log = (Path(path) if path else None for path in (options.run, options.log))
    if engine == "embedded" and run_dir is None and log is None:
        from r3agent.serve import serve

        serve(**settings(options))
        return
    if log is None and run_dir is not None:
        log = run_dir / "servers" / f"{engine}-{os.getpid()}.log"
    if log is not None:
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
    argv = ["--engine", engine, *words(options, [*BOTH, *EMBEDDED])]
    common: dict[str, Any] = {"name": options.name, "port": options.port, "api_key": options.api_key, "log_path": log}
    if engine == "embedded":
        server = ServerProcess(options.model, options=words(options, [*BOTH, *EMBEDDED]), **common)
    else:
        further = [*vllm_options, *options.further]
        server = VLLMProcess(
            options.model,
            host=options.host,
            python=vllm_python,
            options=[*words(options, [flag for flag in BOTH if flag != "--host"]), *further],
            **common,
        )
        argv += ["--vllm-python", server.python, "--set", f"serve.options={json.dumps(further)}"]
    if run_dir is not None:
        argv += ["--run", str(run_dir.resolve())]
    supervise(server, run_dir=run_dir, argv=argv)


def _of_the_other_engine(options: Namespace, engine: str) -> str:
    """What is wrong with the flags, if anything is."""
    if engine == "vllm":
        wrong = " ".join(words(options, EMBEDDED))
        return wrong and f"{wrong}: only the embedded server has this; vLLM's own options come after --"
    further = [*options.further, *words(options, ["--vllm-python"])]
    return " ".join(further) + ": only vLLM has this; pass --engine vllm" if further else ""
