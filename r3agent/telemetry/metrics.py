"""Metrics of a run's stages, reported to one service: TensorBoard, Weights & Biases or Trackio.

The axis of the metrics of collections, trainings and evaluations is the round, and that of optimizer steps counts the
steps of all rounds. A fault of the service is logged once and ends the report, and the run goes on.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from r3agent._util.files import write_atomically
from r3agent.records.record import new_id
from r3agent.telemetry.services import Service, check_service

logger = logging.getLogger(__name__)

ROUND, STEP = "round", "train/global_step"
"""Axes of the metrics."""

ID_FILE = "metrics.json"
"""File in the directory with the ids of its runs at W&B and Trackio."""

NO_METRICS = ("step", "steps", "seconds_left")
"""Values of a step that are no metrics."""

Progress: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Callback of a training."""

PROJECT = "r3agent"
"""Project of W&B and Trackio, unless `WANDB_PROJECT` or `TRACKIO_PROJECT` names another."""


class OpenService(Protocol):
    """A service that is open."""

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Reporter of metrics, which opens its service with the first of them.

    Args:
        service: `none` reports nothing.
        directory: directory of TensorBoard's and W&B's files.
        name: name of the run.
        settings: settings of the run, for W&B and Trackio.
        setting: name of the setting that names the service.

    Raises:
        ConfigError: the service cannot be used.
    """

    def __init__(
        self, service: Service, directory: Path, name: str, settings: Mapping[str, Any], setting: str = "report_to"
    ) -> None:
        check_service(service, setting)
        self._service: Service = service
        self._place = directory, name, settings
        self._open: OpenService | None = None
        self._is_off = service == "none"

    def log(self, prefix: str, values: Mapping[str, Any], at: int, axis: str = ROUND) -> None:
        """Report all numbers in some values, nested ones by their path."""
        found = {} if self._is_off else dict(numbers(values, prefix))
        if found:
            self._guarded(lambda: self._opened().log(found, axis, at))

    def following(self, progress: Progress, steps_before: int = 0) -> Progress:
        """Return a callback of a training that also reports its steps.

        Args:
            steps_before: optimizer steps of earlier versions.
        """

        def follow(stage: str, values: Mapping[str, Any]) -> None:
            if stage == "step":
                logged = {name: value for name, value in values.items() if name not in NO_METRICS}
                self.log("train", logged, steps_before + values["step"], STEP)
            progress(stage, values)

        return follow

    def close(self) -> None:
        """End the report."""
        service, self._open = self._open, None
        if service is not None:
            self._guarded(service.close)

    def _opened(self) -> OpenService:
        if self._open is None:
            self._open = OPEN[self._service](*self._place)
            atexit.register(self.close)
        return self._open

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # services greet their users
                call()
        except Exception as fault:
            self._is_off = True
            logger.warning("metrics are not reported to %s: %s: %s", self._service, type(fault).__name__, fault)


def numbers(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested values with their paths."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(cast(Mapping[str, Any], value), f"{path}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}/{name}", value


class TensorBoard:
    """Event files in `tensorboard/NAME` of the directory, or where `TENSORBOARD_LOGGING_DIR` says."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any]) -> None:
        tensorboard: Any = import_module("tensorboard.summary")
        self._writer = tensorboard.Writer(
            os.environ.get("TENSORBOARD_LOGGING_DIR") or str(directory / "tensorboard" / name)
        )

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, at)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One run at W&B for a run directory, which later commands resume."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=_id(directory, name),
            name=name,
            dir=directory,
            config=dict(settings),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._axes: set[str] = set()

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        for name in values.keys() - self._axes:
            self._run.define_metric(name, step_metric=axis)
        self._axes |= values.keys()
        self._run.log({**values, axis: at})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """One run at Trackio for a run directory, which later commands resume."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any]) -> None:
        self._trackio: Any = import_module("trackio")
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=f"{name}-{_id(directory, name)[:6]}",
            config=dict(settings),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, values: Mapping[str, float], axis: str, at: int) -> None:
        self._run.log({**values, axis: at})

    def close(self) -> None:
        self._trackio.finish()


OPEN: dict[Service, Callable[[Path, str, Mapping[str, Any]], OpenService]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def _id(directory: Path, name: str) -> str:
    """Return the id of a run, which it keeps if its directory is moved."""
    file = directory / ID_FILE
    ids: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    if name not in ids:
        write_atomically(file, json.dumps(ids := {**ids, name: new_id()}))
    return ids[name]
