"""Build the command line of a program in a container; a program that is too long for it is refused."""

from __future__ import annotations

import base64
import math
import shutil
import zlib

from r3agent.errors import ConfigError, VerifierError
from r3agent.verifiers.sandbox.limits import Limits

MAX_ARGUMENT_BYTES = 120_000
"""Maximum length of one command-line argument; Linux allows 128 KiB."""

ENGINES = ("docker", "podman")
IMAGE = "python:3.12-slim"
NOBODY = "65534:65534"
OWN_MB, OWN_PROCESSES = 64, 2
"""Memory and processes of init and `timeout`, in addition to the program's."""

_IN_CONTAINER = """
import resource as r
for name, limit in {limits}.items():
    limit = min([limit, *(x for x in r.getrlimit(getattr(r, name)) if x != r.RLIM_INFINITY)])
    r.setrlimit(getattr(r, name), (limit, limit))
del r
"""


def engine_command(image: str, limits: Limits) -> list[str]:
    """Return the command that starts Python in a container, with one program's limits on its cgroup.

    Raises:
        ConfigError: neither docker nor podman is installed.
    """
    engine = next(filter(None, map(shutil.which, ENGINES)), None)
    if engine is None:
        raise ConfigError(
            f'runner = "container": neither {" nor ".join(ENGINES)} is on PATH; install one, name your own command, '
            'or use runner = "sandbox"'
        )
    memory = f"{limits.memory_mb + limits.disk_mb + OWN_MB}m"  # files in /tmp count too
    return [
        *(engine, "run", "--rm", "--interactive", "--init", "--pull", "never"),
        *("--network", "none", "--read-only", "--user", NOBODY),
        *("--tmpfs", f"/tmp:rw,noexec,nosuid,nodev,size={limits.disk_mb}m"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--memory", memory, "--memory-swap", memory, "--cpus", "1"),
        *("--pids-limit", str(limits.processes + OWN_PROCESSES)),
        *(image, "timeout", "-k", "1", str(math.ceil(limits.wall_s)), "python"),
    ]


def options(source: str, limits: Limits) -> list[str]:
    """Return Python's options to run a program; they also set the limits that a process sets on itself."""
    own = {
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_AS": limits.memory_mb << 20,
        "RLIMIT_FSIZE": limits.disk_mb << 20,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    parts = [_IN_CONTAINER.format(limits=own), source]
    packed = [base64.b64encode(zlib.compress(part.encode("utf-8", "surrogatepass"))).decode() for part in parts]
    code = "import base64,zlib\n" + "".join(
        f"exec(compile(zlib.decompress(base64.b64decode({text!r})),'<program>','exec'))\n" for text in packed
    )
    if len(code) > MAX_ARGUMENT_BYTES:
        raise VerifierError(
            f"a program of {len(code)} bytes, compressed: a container's command takes {MAX_ARGUMENT_BYTES}; "
            "have shorter tests, or use the sandbox without a command"
        )
    return ["-I", "-X", "utf8", "-c", code]
