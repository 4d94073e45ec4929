"""Telemetry of a run: OpenTelemetry spans of what it does, and metrics of its stages for tracking services."""
