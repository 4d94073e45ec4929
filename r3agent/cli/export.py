"""`r3agent export`: the weights of a version, for use without r3agent."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.messages import count
from r3agent.cards import HubRepository, export_version
from r3agent.cli.command import DEFAULT_RUN, Output, RunFlag, switch, verb
from r3agent.errors import ConfigError


@verb()
def export(
    version: Annotated[str, Parameter(help="Version, such as v0007.")],
    out: Annotated[Path | None, Parameter(help="New or empty directory; optional with --push.")] = None,
    /,
    *,
    run: RunFlag = DEFAULT_RUN,
    merged: Annotated[bool, switch("Merge an adapter into its base model: whole weights.")] = False,
    push: Annotated[
        str | None,
        Parameter(help="Model repository of the Hugging Face Hub to upload to, as ORGANISATION/NAME; needs HF_TOKEN."),
    ] = None,
    public: Annotated[bool, switch("Let everybody read the repository; default: it is private.")] = False,
    update: Annotated[bool, switch("Replace the files of a repository that exists.")] = False,
) -> Output:
    if out is None and push is None:
        raise ConfigError("export: no directory; name a new or empty one, or a repository with --push")
    if push is None and (public or update):
        raise ConfigError(f"--{'public' if public else 'update'} is for --push ORGANISATION/NAME, which is missing")
    with ExitStack() as stack:
        repository = None if push is None else HubRepository(push, public=public, update=update)
        folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="r3agent-export-")))
        report = export_version(run, version, folder, merged=merged)
        url = repository and repository.upload(folder, f"{version} of r3agent")
    how = "merged into its base model" if report.merged else "as it was trained"
    lines = [f"{version}, {how}: {count(len(report.files), 'file')}{f' in {out}' if out else ''}"]
    if found := report.fingerprint:
        lines.append(f"fingerprint {found.gap:.2g} nats per token from the training's, on {found.n_tokens} tokens")
    lines += [*report.warnings, *([f"uploaded: {url}"] if url else [])]
    data = {**report.model_dump(mode="json"), "path": str(out) if out else None, "url": url}
    return Output(data, "\n".join(lines))
