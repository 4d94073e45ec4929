"""A PostgreSQL server of the tests' own: on a free port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = "PostgreSQL's initdb and pg_ctl are in none of /usr/lib/postgresql/*/bin and PATH: apt-get install postgresql"


def binaries() -> Path | None:
    """The directory of `initdb` and `pg_ctl`: Debian keeps them out of the path."""
    found = shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None)
    return Path(found).resolve().parent if found else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """The URL of a running server without passwords."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # PostgreSQL refuses to run as root, and nobody but root may read pytest's directories.
    who: Any = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    directory = tempfile.mkdtemp(prefix="r3agent-postgres-")
    data, log = f"{directory}/data", f"{directory}/log"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=directory, **who)

    try:
        if who:
            account = pwd.getpwnam("postgres")
            os.chown(directory, account.pw_uid, account.pw_gid)
        run(f"{programs}/initdb", "-D", data, "-U", "r3agent", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run(f"{programs}/pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield f"postgresql://r3agent@127.0.0.1:{port}/postgres"
        finally:
            run(f"{programs}/pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(directory)
