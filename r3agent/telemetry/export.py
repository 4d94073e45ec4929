"""Export of spans over OTLP, for the command line; an application has its own tracer provider."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import Any

from r3agent._util.imports import require_extra
from r3agent.telemetry.config import TelemetryConfig
from r3agent.telemetry.genai import capture_content

SHUTDOWN_S = 5.0
"""Time for the last spans to be sent; those of a collector that does not answer are lost then."""

DEFAULT = "http://localhost:4318"
"""Address that the SDK sends to if nothing names another."""

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def export_spans(config: TelemetryConfig, run: str) -> None:
    """Export the spans of this process, if a run's settings say so, unless the process has a tracer provider.

    Args:
        run: name of the run, an attribute of the process's resource.

    Raises:
        ConfigError: the extra is missing.
    """
    if config.traces == "none":
        return
    require_extra(EXPORTER, "otel")
    capture_content(config.content)
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(_provider(config.endpoint, run))


def flush() -> None:
    """Send the spans that have ended, from a process that may be killed."""
    api = sys.modules.get("opentelemetry.trace")
    send = getattr(api and api.get_tracer_provider(), "force_flush", None)
    if send is not None:
        send(round(SHUTDOWN_S * 1000))


def _provider(endpoint: str, run: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "r3agent"}
    provider = TracerProvider(
        resource=Resource.create({**named, "r3agent.run": run}),
        shutdown_on_exit=False,  # it waits for each batch that is left
    )
    url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    atexit.register(_end, provider)
    told = _Told(url or f"the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, or else {DEFAULT}")
    for name in (EXPORTER, "opentelemetry.sdk._shared_internal"):
        logging.getLogger(name).addFilter(told)
    return provider


def _end(provider: Any) -> None:
    """Send what is left, for a limited time: the process ends even if the collector hangs."""
    ending = threading.Thread(target=provider.shutdown, daemon=True)
    ending.start()
    ending.join(SHUTDOWN_S)


class _Told(logging.Filter):
    """Filter that says once that spans are lost, and why, in place of what the SDK says of each attempt."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        self._is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if self._is_told:
            return False
        self._is_told = True
        said = record.getMessage().partition(" encountered while")[0].removeprefix("Transient error ")
        reason = said.rpartition(": ")[2].strip("'\")")  # an error of requests has its cause at the end
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg = (
            "%s does not take the spans of telemetry (%s): they are dropped while that is so, which is said once; "
            "start an OTLP collector there, or change telemetry.endpoint"
        )
        record.args, record.exc_info = (self._place, reason), None
        return True
