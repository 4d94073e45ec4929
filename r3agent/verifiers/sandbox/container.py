"""The command line of a program that a container holds. A program too long for one is refused."""

from __future__ import annotations

import base64
import zlib

from r3agent.errors import VerifierError
from r3agent.verifiers.sandbox.limits import Limits

MAX_ARGUMENT_BYTES = 120_000
"""Of one argument of a command; Linux takes 128 KiB."""

_IN_CONTAINER = """
import resource as r
for name, limit in {limits}.items():
    limit = min([limit, *(x for x in r.getrlimit(getattr(r, name)) if x != r.RLIM_INFINITY)])
    r.setrlimit(getattr(r, name), (limit, limit))
del r
"""


def options(source: str, limits: Limits) -> list[str]:
    """Options of Python that run a program; they set the limits that a process sets on itself."""
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
