"""Test doubles for applications: a policy without a model, an endpoint that fails on cue, and traffic.

Nothing is patched: `ScriptedPolicy` replaces an `OpenAIPolicy`, and `ScriptedEndpoint` is a real server.
"""

from r3agent.testing.endpoint import Received, ScriptedEndpoint
from r3agent.testing.faults import (
    DROPPED,
    FATAL,
    FAULTS,
    HANG,
    HTML_PAGE,
    MALFORMED_JSON,
    PROMPT_TOO_LONG,
    SERVER_ERROR,
    Edit,
    Fault,
    limited_until,
    miscount,
    random_faults,
    rate_limited,
)
from r3agent.testing.policy import Call, ScriptedPolicy
from r3agent.testing.traffic import Traffic, traffic_through

__all__ = [
    "DROPPED",
    "FATAL",
    "FAULTS",
    "HANG",
    "HTML_PAGE",
    "MALFORMED_JSON",
    "PROMPT_TOO_LONG",
    "SERVER_ERROR",
    "Call",
    "Edit",
    "Fault",
    "Received",
    "ScriptedEndpoint",
    "ScriptedPolicy",
    "Traffic",
    "limited_until",
    "miscount",
    "random_faults",
    "rate_limited",
    "traffic_through",
]
