"""Flags that several verbs share: for settings of r3.toml, and for who decided on a deploy."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter

from r3agent.audit.config import AuditConfig
from r3agent.cli.command import HEADER, flags_of
from r3agent.errors import ConfigError
from r3agent.run.agent import AgentConfig
from r3agent.run.config import BranchConfig, CollectConfig, EvalConfig, LoopConfig, PolicyConfig, TaskConfig
from r3agent.store.history import GATE
from r3agent.train.config import TrainConfig

URL = [
    *flags_of("policy", PolicyConfig, {"--url": "base_url"}),
    inspect.Parameter(
        "policy__headers",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[tuple[str, ...] | None, HEADER],
    ),
]
AGENT = flags_of("agent", AgentConfig, {"--agent": "agent", "--tools": "tools", "--environment": "environment"})
SUBJECT = [
    *flags_of("policy", PolicyConfig, {"--model": "model", "--base-model": "base_model"}),
    *flags_of("task", TaskConfig, {"--task": "source", "--verifier": "verifier", "--seed": "seed"}),
    *AGENT,
]
DRAW = flags_of(
    "collect",
    CollectConfig,
    {
        "--samples": "samples",
        "--reflections": "reflections",
        "--reflections-at-once": "reflections_at_once",
        "--retries": "retries",
        "--blind-retries": "blind_retries",
        "--concurrency": "concurrency",
        "--engine": "engine",
        "--address": "address",
        "--shards": "shards",
        "--max-episodes": "max_episodes",
        "--max-tokens": "max_tokens",
        "--max-cost": "max_cost",
        "--max-seconds": "max_seconds",
        "--target-groups": "target_groups",
    },
)
COLLECT = [*flags_of("collect", CollectConfig, {"--n": "n"}), *DRAW]
BRANCH = flags_of("branch", BranchConfig, {"--from": "source", "--failed": "failed", "--since": "since", "--n": "n"})
EVAL = flags_of("eval", EvalConfig, {"--n": "n", "--lift": "lift"})
TRAIN = flags_of("train", TrainConfig, {("--recipe", "--method"): "recipe"})
ROUNDS = flags_of("loop", LoopConfig, {"--rounds": "rounds"})
AUDIT = flags_of("audit", AuditConfig, {"--n": "n", "--model-limit": "model_limit"})

ByFlag: TypeAlias = Annotated[str, Parameter(help="Name for the run's history; no account or machine is looked up.")]
ReasonFlag: TypeAlias = Annotated[str | None, Parameter(help="Reason for the run's history.", show_default=False)]


def decided_by(by: str, reason: str | None) -> dict[str, Any]:
    """Return who decided, and why, as arguments of a deploy or a rollback.

    Raises:
        ConfigError: a person gives the name of the gate.
    """
    if by.strip() == GATE:
        raise ConfigError(
            f"--by {GATE}: the gate decides in `r3agent loop`; give the name of a person, or leave it out"
        )
    return {"by": by, "reasons": [reason] if reason else []}
