"""Nodes of the loop, made from what an application gives to `build_graph` and `collect`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from typing_extensions import Unpack

from r3agent.episodes.agents.base import Agent, Environment
from r3agent.episodes.agents.tries import TryRunner
from r3agent.episodes.collaborators import check_environment, check_policy, check_verifier
from r3agent.episodes.config import EpisodeConfig, EpisodeOptions
from r3agent.episodes.nodes import Nodes
from r3agent.episodes.sampler import Sampler, Streamer
from r3agent.errors import ConfigError
from r3agent.policy import Policy
from r3agent.verifiers import Verifier
from r3agent.verifiers.interface import takes_environment


def assemble(
    *,
    policy: Policy,
    verifier: Verifier,
    agent: object | None = None,
    tools: Sequence[Any] = (),
    environment: Environment | None = None,
    stream: bool = False,
    **options: Unpack[EpisodeOptions],
) -> Nodes:
    """Check the collaborators and the settings, which `build_graph` documents, and make the nodes.

    Raises:
        ConfigError: as `build_graph`.
    """
    check_policy(policy)
    check_verifier(verifier)
    config, sampler = EpisodeConfig.of(options), Sampler(_streamer(policy) if stream else None)
    return Nodes(
        policy=policy,
        verifier=verifier,
        config=config,
        templates=config.templates(),
        sampler=sampler,
        runner=_runner(policy, agent, tools, environment, verifier, config, sampler),
    )


def _runner(
    policy: Policy,
    agent: object | None,
    tools: Sequence[Any],
    environment: Environment | None,
    verifier: Verifier,
    config: EpisodeConfig,
    sampler: Sampler,
) -> TryRunner | None:
    """Return the runner of tries of several steps; `None` if a try is one completion in no world."""
    if agent is None and not tools and environment is None:
        if takes_environment(verifier, required=True):
            raise ConfigError(
                "the verifier takes a third argument, the environment of a try, and there is none; write "
                "def check(task, answer), or pass environment=, an agent or tools"
            )
        return None
    check_environment(environment)
    if agent is not None and tools:
        raise ConfigError(
            "agent and tools: an agent has its own tools; give them to it, or pass tools without an agent"
        )
    if agent is None:
        from r3agent.episodes.agents.tool_loop import ToolLoop

        maker: Agent = ToolLoop.of(tools, has_world=environment is not None, config=config, sampler=sampler)
    else:
        from r3agent.episodes.agents.choice import choose_agent

        maker = choose_agent(agent, policy)
        environment = environment or getattr(maker, "world", None)  # a program has a directory
    return TryRunner(agent=maker, environment=environment, verifier=verifier)


def _streamer(policy: Policy) -> Streamer:
    if "on_delta" not in inspect.signature(policy.sample).parameters:
        raise ConfigError(
            f"stream = True: {type(policy).__name__}.sample takes no on_delta; give it one as OpenAIPolicy has, "
            "or leave stream out"
        )
    from r3agent.episodes.token_stream import stream_spans

    return stream_spans
