"""Addresses of local servers: listening on one, and its base URL."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from r3agent.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Args:
        port: port to listen on; 0 chooses a free one.

    Raises:
        ConfigError: the port is taken or invalid, or the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: must be 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        remedy = "pass another --port, or 0 for a free one" if taken else "pass another --host"
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from error


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_url(host: str, port: int) -> str:
    """Return the base URL, ending in /v1, for a client on this machine."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{target}]' if ':' in target else target}:{port}/v1"
