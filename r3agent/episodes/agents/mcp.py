"""MCP servers as tools: each try has a session of its own with the server, closed whatever happens.

tools=[McpServer(command="python", args=["shop_server.py"]), McpServer(url="http://127.0.0.1:8000/mcp")]
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from r3agent._util.checked import Positive, checked
from r3agent._util.imports import require_extra
from r3agent._util.within import leave_behind, settled
from r3agent.episodes.agents.tools import Tool, make_tool
from r3agent.errors import AgentError, ConfigError
from r3agent.http.urls import redact_url

GRACE_S = 5.0
"""Time for a session to end."""


class McpServer:
    """MCP server whose tools a policy may call; give it to `tools` of `build_graph` or `collect`.

    Args:
        command: program that is the server and speaks on its standard streams; each try starts one.
        args: its arguments.
        env: its environment variables; default: the few that are safe, such as PATH.
        cwd: its working directory.
        url: URL of a server that speaks streamable HTTP, instead of a command; each try has a session.
        headers: headers of the requests to `url`; never recorded.
        start_timeout_s: time limit of starting a session, in seconds.

    Raises:
        ConfigError: there is neither a command nor a URL, or both; there is no such program; or the extra `mcp` is not
            installed.
    """

    @checked
    def __init__(
        self,
        command: str | None = None,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        start_timeout_s: Positive = 60.0,
    ) -> None:
        require_extra("langchain_mcp_adapters.tools", "mcp")
        if (command is None) == (url is None):
            raise ConfigError(f"McpServer: command = {command!r} and url = {url!r}; give one of the two")
        if command is not None and shutil.which(command, path=(env or {}).get("PATH")) is None:
            raise ConfigError(f"McpServer: command = {command!r}: there is no such program; give its path")
        self._name = redact_url(url) if command is None and url is not None else " ".join([str(command), *args])
        self._start_timeout_s = start_timeout_s
        self._connection: Any = {"transport": "streamable_http", "url": url, "headers": dict(headers or {})}
        if command is not None:
            own = dict(env) if env is not None else None
            self._connection = {"transport": "stdio", "command": command, "args": [*args], "env": own, "cwd": cwd}
        self._tools: list[Tool] | None = None

    def __repr__(self) -> str:
        return f"McpServer({self._name!r})"

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the server, as JSON without secrets."""
        return {"mcp_server": self._name}

    async def tools(self) -> list[Tool]:
        """Return the tools as the server listed them in the first session, without their code.

        Raises:
            AgentError: the session cannot be started.
        """
        if self._tools is None:
            async with self.session() as tools:
                self._tools = tools
        return self._tools

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[list[Tool]]:
        """Start a session and list its tools.

        Raises:
            AgentError: it cannot be started.
        """
        from langchain_mcp_adapters.sessions import create_session
        from langchain_mcp_adapters.tools import load_mcp_tools

        listed: asyncio.Future[Sequence[object]] = asyncio.get_running_loop().create_future()
        is_over = asyncio.Event()

        async def hold() -> None:
            async with create_session(self._connection) as session:
                await session.initialize()
                listed.set_result(await load_mcp_tools(session))
                await is_over.wait()

        # A session whose server ends cancels the task that it was opened in: this is not that of the try.
        holding = asyncio.create_task(settled(hold))
        try:
            given: Any = {"timeout": self._start_timeout_s, "return_when": asyncio.FIRST_COMPLETED}
            await asyncio.wait({holding, listed}, **given)
            if not listed.done():
                slow = TimeoutError(f"it took longer than start_timeout_s = {self._start_timeout_s:g}")
                error = holding.result()[1] if holding.done() else slow
                raise AgentError(f"{self!r} does not start: {_text(error or slow)}") from error
            yield [make_tool(tool, has_world=False) for tool in listed.result()]
        finally:
            is_over.set()
            await asyncio.wait({holding}, timeout=GRACE_S if listed.done() else 0.0)
            holding.cancel()
            await asyncio.wait({holding}, timeout=GRACE_S)
            leave_behind(holding, repr(self))


def _text(error: BaseException) -> str:
    """Return the text of an error, or of the first in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
