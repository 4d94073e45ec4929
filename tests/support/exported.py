"""Spans of OpenTelemetry that end during a test, in a tracer provider as an application has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult


class Exported(SpanExporter):
    """Exporter into a list."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.is_open = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.is_open:
            self.spans += spans
        return SpanExportResult.SUCCESS

    def named(self, beginning: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.startswith(beginning)]

    def one(self, beginning: str) -> ReadableSpan:
        [span] = self.named(beginning)
        return span

    def children(self, span: ReadableSpan) -> list[ReadableSpan]:
        return [s for s in self.spans if s.parent is not None and s.parent.span_id == id_of(span)]


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def has(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@cache
def _of_process() -> Exported:
    """Set the provider, which a process can do once."""
    exported, provider = Exported(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    trace.set_tracer_provider(provider)
    return exported


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = _of_process()
    exported.spans, exported.is_open = [], True
    yield exported
    exported.is_open = False
