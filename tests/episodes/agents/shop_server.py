"""A real MCP server with a state: a counter of its process."""

from __future__ import annotations

import os
import sys

from mcp.server.fastmcp import FastMCP

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


if __name__ == "__main__":
    if sys.argv[1:] == ["broken"]:
        sys.exit("broken")
    print(os.getpid(), file=open(sys.argv[1], "a")) if sys.argv[1:] else None  # noqa: SIM115
    server.run()
