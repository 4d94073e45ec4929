"""Flags that say how a server is reached, of verbs that take its URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter

from r3agent.http.headers import fill_in, parse_headers

PROXY = Parameter(help="URL of a proxy, in which $NAME is an environment variable.")
VERIFY = Parameter(help='PEM file with the authorities to trust; "false" for no check of the certificate.')


def read_access(header: Sequence[str], proxy: str, verify: str) -> dict[str, Any]:
    """Return the arguments of what asks the server, with values from the environment.

    Raises:
        ConfigError: a header has another form, or an environment variable is not set.
    """
    return {
        "headers": fill_in(parse_headers(header, setting="--header"), setting="--header"),
        "proxy": fill_in({"proxy": proxy}, setting="--proxy")["proxy"] or None,
        "verify": {"true": True, "false": False}.get(verify.lower(), verify),
    }
