"""Fakes to test applications with: a policy without a model, and an endpoint that fails on cue.

Neither patches anything: `ScriptedPolicy` goes where an `OpenAIPolicy` goes, `ScriptedEndpoint` is a real server.
"""

from r3agent.testing.endpoint import Received, ScriptedEndpoint
from r3agent.testing.faults import (
    DROPPED,
    HANG,
    HTML_PAGE,
    MALFORMED_JSON,
    PROMPT_TOO_LONG,
    SERVER_ERROR,
    Edit,
    Fault,
    miscount,
    rate_limited,
)
from r3agent.testing.policy import Call, ScriptedPolicy

__all__ = [
    "DROPPED",
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
    "miscount",
    "rate_limited",
]
