"""Hashes of what makes a run's episodes: the graph with its agent, the prompts and the verifier."""

from __future__ import annotations

from collections.abc import Iterable

from r3agent._util.imports import source_of
from r3agent.episodes.config import EpisodeLimits
from r3agent.run.config import Config
from r3agent.run.directory import digest
from r3agent.store.provenance import file_sha256


def made_with(config: Config, verifier: str) -> dict[str, str]:
    """Hash what makes the episodes of a run by its current settings, with the sources of the user's own modules.

    The code of r3agent itself is known by its version.

    Args:
        config: settings with the prompts filled in.
        verifier: name of the verifier.
    """
    agent = config.agent
    graph = [
        config.collect.model_dump(include={*EpisodeLimits.model_fields}),
        config.sampling.model_dump(mode="json"),
        config.task.cut_off,
        agent.model_dump(mode="json"),
        _sources([agent.agent, agent.environment, *agent.tools]),
    ]
    judge = [verifier, config.task.verifier_params, _sources([verifier])]
    return {"graph": digest(graph), "prompts": digest(config.prompts.model_dump()), "verifier": digest(judge)}


def _sources(names: Iterable[str]) -> list[str | None]:
    return [file_sha256(path) if (path := source_of(name)) else None for name in names]
