"""Commands of one seed of the protocol, each of which is done once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.paper.settings import claim, decisive, settings_of, words_of
from r3agent._util.files import write_atomically
from r3agent.records.versions import BASE, version_name
from r3agent.run.config import Config, load_config
from r3agent.serve import ServerProcess, VLLMProcess
from r3agent.serve.process.process import LocalServer
from r3agent.store.registry import Registry

WARM_UP_SEEDS = 500
"""Distance of the seeds of a warm-up's tasks from those of a run."""

PYTHON = (sys.executable, "-m")
"""Words before `r3agent train`."""


class Commands:
    """Runner of commands whose reports stay in a folder; one with a report is not run again.

    `NAME.json` has a report and the duration of all calls of its command; `NAME.seconds` has that of those so far.

    Args:
        launcher: words before `r3agent train`, such as `torchrun --nproc-per-node 8 -m --`.
    """

    def __init__(self, folder: Path, launcher: Sequence[str] = PYTHON) -> None:
        self.folder, self.launcher = folder, launcher
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, *words: object) -> dict[str, Any]:
        """Run a verb of r3agent, and return its report.

        Raises:
            SystemExit: it failed; the same call goes on there.
        """
        file = self.folder / f"{name}.json"
        if not file.exists():
            command = [*(self.launcher if words[0] == "train" else PYTHON), "r3agent", *map(str, words), "--json"]
            print("$", shlex.join(["r3agent", *map(str, words)]), flush=True)
            with timed(self.folder, name):
                made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if made.returncode:
                sys.exit(f"r3agent {words[0]} ended with exit code {made.returncode}; the same command goes on there")
            entry = {"seconds": seconds_of(self.folder, name), "report": json.loads(made.stdout.splitlines()[-1])}
            write_atomically(file, json.dumps(entry))
        return json.loads(file.read_text())["report"]


def seconds_of(folder: Path, name: str) -> float:
    """Return the duration of all calls of a command, those that failed or were stopped included."""
    file = folder / f"{name}.seconds"
    return float(file.read_text()) if file.exists() else 0.0


@contextmanager
def timed(folder: Path, name: str, *, every_s: float = 10.0) -> Generator[None]:
    """Add the duration of the block to the seconds of a command, also while it runs, since it may be killed."""
    before, began, ended = seconds_of(folder, name), time.monotonic(), threading.Event()

    def update() -> None:
        write_atomically(folder / f"{name}.seconds", f"{before + time.monotonic() - began:.1f}")

    def keep_up_to_date() -> None:
        while not ended.wait(every_s):
            update()

    thread = threading.Thread(target=keep_up_to_date, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        update()


def server(config: Config, model: str, log: Path, url: str = "") -> AbstractContextManager[LocalServer | None]:
    """Make the server of a model; none, if one is at `url` already."""
    own: Any = {"name": config.policy.model, "log_path": log}
    if url:
        return nullcontext()
    if config.serve.engine == "embedded":
        return ServerProcess(model, **own)
    python, options = config.serve.vllm_python or None, config.serve.options
    return VLLMProcess(model, python=python, options=options, lora_rank=config.train.lora_r, **own)


def train(do: Commands, run: Path, number: int, *words: object) -> None:
    """Train version `number`, or go on with its training."""
    registry, version = Registry(run), version_name(number)
    if version not in registry.versions():  # the command may have been stopped before its report was written
        do(f"train-{number}", "train", "--run", run, *words, *(["--resume"] * registry.has_checkpoint(version)))


def collect(do: Commands, run: Path, at: Sequence[object]) -> None:
    """Sample first tries alone."""
    do("collect", "collect", "--run", run, *at, "--set=collect.max_attempts=1")


def run_rounds(do: Commands, run: Path, config: Config, at: Sequence[object]) -> None:
    """Sample failures once, then reflect on them and train, round after round, and compare the last version."""
    collect(do, run, at)
    for number in range(1, config.loop.rounds + 1):
        do(f"branch-{number}", "branch", "--run", run, *at, "--samples", 1)
        train(do, run, number, *at)
        do(f"deploy-{number}", "deploy", version_name(number), "--run", run, *at)
    do("eval", "eval", "--run", run, *at, "--after", version_name(config.loop.rounds))


def seeds(seed: int) -> dict[str, Any]:
    """Return the seeds of a run, as arguments of `settings_of`."""
    return {f"{section}__seed": seed for section in ("task", "sampling", "train", "eval")}


def run_seed(
    configs: Sequence[Path], seed: int, folder: Path, *, warm_up: Path | None, url: str, launcher: Sequence[str]
) -> None:
    """Run the protocol with one seed, as far as it is not done, in a folder of its own.

    The seed draws the tasks of training and those that are held out, the weights of new adapters, the order of rows and
    the samples.

    Raises:
        SystemExit: the folder belongs to other settings, or a command failed.
    """
    claim(folder, {"seed": seed, **decisive(configs, warm_up)})
    config = load_config(None, settings_of(configs))
    model, run = config.policy.base_model, folder / "run"
    if warm_up is not None:
        model = warmed_up(configs, warm_up, seed, folder, launcher=launcher)
    do = Commands(folder / "commands", launcher)
    if (do.folder / "eval.json").exists():
        return
    with server(config, model, folder / "server.log", url) as served:
        at = ("--url", served.base_url if served else url)
        settings = settings_of(configs, **seeds(seed), policy__base_model=model)
        do("init", "init", "--run", run, *at, *words_of(settings))
        run_rounds(do, run, config, at)


def warmed_up(configs: Sequence[Path], warm_up: Path, seed: int, folder: Path, *, launcher: Sequence[str]) -> str:
    """Train on first tries that passed, and return the directory of the weights; measure the base model beside it.

    The training tasks differ from those of the run, and the held-out ones do not.

    Args:
        warm_up: settings in addition to those of the configs, such as `train.recipe = "sft"`.
    """
    do, run, weights = Commands(folder / "warm-up-commands", launcher), folder / "warm-up", folder / "warmed-up"
    settings = settings_of([*configs, warm_up], **{**seeds(seed), "task__seed": WARM_UP_SEEDS + seed})
    config = load_config(None, settings)
    if not (do.folder / "export.json").exists():
        with server(config, config.policy.base_model, folder / "warm-up-server.log") as served:
            at = ("--url", served.base_url if served else "")
            do("init", "init", "--run", run, *at, *words_of(settings))
            collect(do, run, at)
            do("eval", "eval", "--run", run, *at, "--before", BASE, "--after", BASE)
        train(do, run, 1)
        do("export", "export", version_name(1), weights, "--run", run, "--merged")
    return str(weights)
