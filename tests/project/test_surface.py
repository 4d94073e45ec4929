"""The public names: a change here is a change for users."""

from __future__ import annotations

import importlib
import inspect
import typing

import pytest

SURFACE: dict[str, list[str]] = {
    "r3agent": [
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
    ],
    "r3agent.train": [
        "PolicyStart",
        "Row",
        "RowReport",
        "TrainConfig",
        "build_rows",
        "credit_spans",
        "to_dataset",
        "train",
    ],
    "r3agent.deploy": [
        "CanaryReport",
        "DeployConfig",
        "DeployReport",
        "LoadReport",
        "deploy",
        "load_version",
        "rollback",
    ],
    "r3agent.evaluate": [
        "CELLS",
        "Cell",
        "Comparison",
        "Decision",
        "Difference",
        "Evaluation",
        "Rate",
        "compare",
        "evaluate",
        "gate",
        "table",
        "wilson",
    ],
    "r3agent.serve": ["Engine", "ServerProcess", "VLLMProcess", "create_app", "load_model", "serve"],
    "r3agent.doctor": ["Check", "Diagnosis", "diagnose", "report"],
    "r3agent.testing": [
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
        "Traffic",
        "miscount",
        "rate_limited",
        "traffic_through",
    ],
}
"""`__all__` of each module that has public names; a new one is added here, to its `__all__` and to
`tests/project/typing/user.py`."""

ALSO_PUBLIC: dict[str, list[str]] = {
    "r3agent.store.registry": ["PolicyCard", "Registry"],
    "r3agent.tasks": ["TaskSource", "find_tasks"],
    "r3agent.verifiers": ["find_verifier"],
}
"""Public names of modules that have others too."""

NAMES = [(module, name) for modules in (SURFACE, ALSO_PUBLIC) for module, names in modules.items() for name in names]


@pytest.mark.parametrize("module", SURFACE)
def test_public_names_are_these_in_order(module: str) -> None:
    # Constants, classes, then functions, as `ruff` sorts `__all__`.
    names = SURFACE[module]
    assert importlib.import_module(module).__all__ == names
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_public_name_is_documented(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    is_type_alias = typing.get_origin(value) is not None
    own_docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert is_type_alias or own_docstring
