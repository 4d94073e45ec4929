"""Addresses of endpoints: checked, and as they may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from r3agent.errors import ConfigError


def redact_url(url: str) -> str:
    """Without user and password, if it has any."""
    return re.sub(r"^([^/?#]*//)?[^/?#]*@", r"\1", url)


def check_url(url: str) -> str:
    """
    Raises:
        ConfigError: it is not the address of an API.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(f"base_url = {redact_url(url)!r}: must start with http://, e.g. http://127.0.0.1:8000/v1")
    return url
