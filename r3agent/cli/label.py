"""`r3agent label`: add a verdict to a stored episode."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from r3agent.cli.command import Output, next_step, switch, verb
from r3agent.errors import ConfigError
from r3agent.store.labels import label as label_trajectory
from r3agent.store.shards import store_at


@verb()
def label(
    run: Annotated[str, Parameter(help="Run directory, or its trajectories/.")],
    trajectory: Annotated[str, Parameter(help="Id of the trajectory, or a prefix of it.")],
    /,
    *,
    passed: Annotated[bool, switch("The answer was right.")] = False,
    failed: Annotated[bool, switch("The answer was wrong.")] = False,
    span: Annotated[str | None, Parameter(help="Id of the span to judge; default: the final answer.")] = None,
    feedback: Annotated[str | None, Parameter(help="Reason, for people.", allow_leading_hyphen=True)] = None,
) -> Output:
    if passed == failed:
        raise ConfigError("say either --passed or --failed; r3agent label RUN TRAJECTORY --passed")
    verdict = label_trajectory(run, trajectory, passed=passed, span_id=span, feedback=feedback)
    store = store_at(run)
    directory = store.parent if store.name == "trajectories" else store
    overrules = "" if verdict.overrules is None else f", overruling the verifier's {_word(verdict.overrules)}"
    return Output(
        verdict.model_dump(mode="json"),
        f"span {verdict.span_id} of trajectory {verdict.trajectory_id} {_word(verdict.passed)}, "
        f"says {verdict.by}{overrules}; next: {next_step('inspect', directory, verdict.trajectory_id)}",
    )


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"
