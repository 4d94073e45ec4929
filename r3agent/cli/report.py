"""`r3agent report`: write the report of a run as one page, or serve it while the run goes."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.console import size
from r3agent._util.messages import count
from r3agent.cli.command import DEFAULT_RUN, Output, switch, verb
from r3agent.cli.traces import export_spans_of
from r3agent.errors import ConfigError
from r3agent.report import ReportServer, write_report
from r3agent.report.gather import LIMIT


@verb()
def report(
    run: Annotated[Path, Parameter(help="Run directory, or a store of trajectories.")] = Path(DEFAULT_RUN),
    /,
    *,
    out: Annotated[Path | None, Parameter(help="File to write; default: report.html in the run.")] = None,
    limit: Annotated[
        int, Parameter(help="Number of trajectories to list, about; of more, those of an even sample of tasks.")
    ] = LIMIT,
    serve: Annotated[bool, switch("Serve the report on this machine while the run goes; label answers in it.")] = False,
    port: Annotated[int, Parameter(help="Port of --serve; 0 chooses a free one.")] = 8200,
) -> Output:
    if limit < 1:
        raise ConfigError(f"--limit {limit}: at least 1")
    if serve:
        if out is not None:
            raise ConfigError(f"--out {out}: --serve writes no file; leave one of them out")
        return _serve(run, port, limit)
    written = write_report(run, out, limit=limit)
    listed = "" if written.listed == written.episodes else f" {written.listed} of"
    text = f"{written.headline}\n{written.path}: {size(written.bytes)},{listed} {count(written.episodes, 'episode')}"
    return Output({**written._asdict(), "path": str(written.path)}, text)


def _serve(run: Path, port: int, limit: int) -> Output:
    export_spans_of(run)
    with ReportServer(run, port=port, limit=limit) as server:
        print(f"report of {run} on {server.url}; Ctrl-C ends it", file=sys.stderr, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        return Output({"url": server.url}, "stopped")
