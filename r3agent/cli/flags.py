"""Flags that several verbs share, each for one setting of r3.toml."""

from __future__ import annotations

import inspect
from typing import Annotated

from r3agent.audit.config import AuditConfig
from r3agent.cli.command import HEADER, flags_of
from r3agent.run.agent import AgentConfig
from r3agent.run.config import BranchConfig, CollectConfig, EvalConfig, LoopConfig, PolicyConfig, TaskConfig

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
ROUNDS = flags_of("loop", LoopConfig, {"--rounds": "rounds"})
AUDIT = flags_of("audit", AuditConfig, {"--n": "n", "--model-limit": "model_limit"})
