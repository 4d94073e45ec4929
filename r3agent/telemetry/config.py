"""Settings of telemetry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r3agent.records.record import Record
from r3agent.telemetry.services import Service


class TelemetryConfig(Record):
    """Where the spans and the metrics of a run go."""

    traces: Literal["none", "otlp"] = "none"
    """Export OpenTelemetry spans of episodes, model calls, tool calls, verdicts, training steps and deploys over OTLP
    and HTTP. The standard variables `OTEL_EXPORTER_OTLP_*`, `OTEL_SERVICE_NAME` and `OTEL_TRACES_SAMPLER` apply; an
    application that has its own tracer provider gets the spans without this setting."""
    endpoint: str = Field(default="", pattern=r"^(https?://[^\s@]+)?$")
    """Base URL of the collector, without a password; empty: that of `OTEL_EXPORTER_OTLP_ENDPOINT`, or
    `http://localhost:4318`. Headers with keys belong into `OTEL_EXPORTER_OTLP_HEADERS`."""
    report_to: Service = "none"
    """Service that gets the metrics of collections, trainings and evaluations, by round, and of optimizer steps:
    TensorBoard (into `tensorboard/` of the run, or `TENSORBOARD_LOGGING_DIR`), W&B or Trackio."""
    content: bool = False
    """Put the messages, tool arguments, tool results, feedback and the authors of labels into the spans too, which may
    be private."""
