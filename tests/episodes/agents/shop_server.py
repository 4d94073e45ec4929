"""A real MCP server with a state: a counter of its process.

shop_server.py [FILE_FOR_PID | broken | http PORT]
"""

from __future__ import annotations

import os
import sys
from typing import Any

from mcp.server.fastmcp import Context, FastMCP

server, sold = FastMCP("shop", log_level="ERROR"), list[str]()


@server.tool()
def sell(item: str, n: int = 1) -> str:
    """Sell an item."""
    sold.extend([item] * n)
    return f"{len(sold)} sold"


@server.tool()
def refuse(item: str) -> str:
    """Refuse an item."""
    raise ValueError(f"no {item} here")


@server.tool()
def crash() -> str:
    """End the server."""
    os._exit(3)


@server.tool()
def whoami(context: Context[Any, Any, Any]) -> str:
    """Tell the caller's key and session."""
    request = context.request_context.request
    assert request is not None  # it came over HTTP
    return f"{request.headers.get('x-key')} {request.headers.get('mcp-session-id')}"


if __name__ == "__main__":
    if sys.argv[1:] == ["broken"]:
        sys.exit("broken")
    if sys.argv[1:2] == ["http"]:
        server.settings.port = int(sys.argv[2])
        server.run("streamable-http")
        sys.exit()
    print(os.getpid(), file=open(sys.argv[1], "a")) if sys.argv[1:] else None  # noqa: SIM115
    server.run()
