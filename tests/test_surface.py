"""The public names: a change here is a change for users."""

from __future__ import annotations

import inspect
import typing

import pytest

import r3agent

PUBLIC = [
    "AccessError",
    "Answer",
    "BusyError",
    "CollectSummary",
    "ConfigError",
    "DeployError",
    "EndpointError",
    "EpisodeContext",
    "Generation",
    "Group",
    "OpenAIPolicy",
    "Policy",
    "PolicyError",
    "ProtocolError",
    "R3Error",
    "RecordError",
    "Recorder",
    "RequestError",
    "Sampling",
    "SchemaVersionError",
    "Span",
    "Task",
    "TrainingError",
    "Trajectory",
    "Verdict",
    "Verifier",
    "VerifierError",
    "build_graph",
    "collect",
    "groups",
    "instrument",
    "label",
    "load",
    "trace",
]


def test_public_names_are_these_in_order() -> None:
    assert r3agent.__all__ == PUBLIC == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name: str) -> None:
    value = getattr(r3agent, name)
    is_type_alias = typing.get_origin(value) is not None
    own_docstring = vars(value)["__doc__"] if inspect.isclass(value) else value.__doc__
    assert is_type_alias or own_docstring
