"""s3fs, and a server that speaks S3, which `make extras` installs into a directory of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.outage import free_port
from tests.support.processes import started

S3 = Path(sys.prefix, "s3")

HAS_S3 = (S3 / "moto").is_dir()

needs_s3 = pytest.mark.skipif(not HAS_S3, reason=f"s3fs and moto are not in {S3}: make extras")


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a program that is to use the server, which has no bucket."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(S3)]),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with started(command, healthy=f"{url}/moto-api/", env=env, cwd=folder, log=folder / "s3.log"):
        yield env
