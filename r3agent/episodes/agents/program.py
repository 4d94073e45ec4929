"""Program as an agent: a command that asks the model at `OPENAI_BASE_URL`, reads its task and prints its answer.

    agent = Program(["node", "agent.js"], memory_mb=2048)
    graph = build_graph(agent=agent, policy=OpenAIPolicy(...), verifier=check)

Each try runs the command once. It gets

- the task as text on stdin: for a retry, with the failed answers, the reflections and the prompts between them;
- the same as JSON, `{"id", "messages", "tools"}`, in the file `$R3_TASK_FILE`;
- `OPENAI_BASE_URL`, a URL of its own of a gateway in this process, which records its calls as the steps of the try,
  `OPENAI_API_KEY`, a stand-in for the policy's key, and `OPENAI_MODEL`, a name that the gateway takes for the policy;
  `ANTHROPIC_BASE_URL`, `ANTHROPIC_API_KEY` and `ANTHROPIC_MODEL` are the same for Anthropic's API;
- an empty working directory of its own, or, if the environment is a path, that; so the files of the command that exist
  where it is made, such as agent.js, are given by their full paths.

Its stdout is the answer. An exit code that is not 0 is an error, with the end of stderr. When it ends, or a limit is
exceeded, all processes that it started are ended.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from pydantic import Field

from r3agent._util import guard
from r3agent._util.aio import gather_all
from r3agent._util.checked import AtLeastOne, checked
from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.episodes.agents.process_tree import GRACE_S, MARK, ProcessTree
from r3agent.errors import AgentError, ConfigError, StepLimitError
from r3agent.http.errors import NO_KEY
from r3agent.policy import Access
from r3agent.records.reply import text_of
from r3agent.records.trajectory import Message, Task

POLL_S = 0.05
STDERR_CHARS = 2000
"""Length of the end of stderr in an error."""
SPEAKERS = {"assistant": "You", "tool": "Result of the call"}
"""Names of the speakers on stdin; the other messages have none."""
POLICY = "policy"
"""Model name that the gateway takes for the policy."""
SIGNALS = frozenset(signal.Signals)


class _OverrunError(Exception):
    """The program printed more than it may."""


class Program:
    """Command that makes a try.

    Args:
        command: the program and its arguments, as a list or as a line for the shell's rules of quoting.
        env: further environment variables, besides those of this process.
        memory_mb: limit of the memory of all its processes; `None` for none.
        output_mb: limit of its stdout.

    Raises:
        ConfigError: there is no such program, or the system has no /proc.
    """

    @checked
    def __init__(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        memory_mb: AtLeastOne | None = None,
        output_mb: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        words = shlex.split(command) if isinstance(command, str) else [*command]
        if not os.path.exists("/proc/self/stat"):
            raise ConfigError(
                f"command = {command!r}: a program needs /proc, by which its processes are found and ended; run it on "
                "Linux, or start it yourself with the URL of `r3agent gateway`"
            )
        self.command = [os.path.abspath(word) if os.path.isfile(word) else word for word in words]
        if not words or shutil.which(words[0]) is None:
            raise ConfigError(f"command = {command!r}: there is no such program; give its path, or extend PATH")
        self.env = dict(env or {})
        self.memory_mb = memory_mb
        self.output_mb = output_mb
        self._lock = Lock()
        self._gateway: Any = None

    def __repr__(self) -> str:
        return f"Program({shorten(shlex.join(self.command))})"

    @asynccontextmanager
    async def world(self, task: Task) -> AsyncGenerator[Path]:
        """Make the world of a try without an environment: an empty directory."""
        with tempfile.TemporaryDirectory(prefix="r3agent-", ignore_cleanup_errors=True) as directory:
            yield Path(directory)

    async def run(self, call: AgentCall) -> AgentEnd:
        terms = call.scope.terms
        if terms is None or terms.base_url is None:
            raise ConfigError(f"{self!r} asks an endpoint, and the policy has none; pass an OpenAIPolicy")
        access = terms.access or Access()
        if access.http_client is not None:
            raise ConfigError(
                f"{self!r} asks through a gateway, which cannot send requests with the policy's http_client; give the "
                "policy proxy= and verify= in place of the client"
            )
        gateway = await asyncio.to_thread(self._serving, terms.base_url, access)
        opening = asyncio.create_task(asyncio.to_thread(gateway.open, call.episode, call.scope))

        async def close() -> None:
            await asyncio.to_thread(gateway.close, await opening)

        try:
            return AgentEnd(await self._run(call, await asyncio.shield(opening)))
        finally:
            await asyncio.shield(close())

    def _serving(self, upstream: str, access: Access) -> Any:
        """Return the gateway of this process, which the first try starts."""
        from r3agent.gateway.server import Gateway

        with self._lock:
            if self._gateway is None:
                self._gateway = Gateway(upstream, proxy=access.proxy, verify=access.verify).__enter__()
                atexit.register(self.close)
            return self._gateway

    def close(self) -> None:
        """Stop the gateway; the next try starts another one."""
        with self._lock:
            if self._gateway is not None:
                self._gateway.__exit__(None, None, None)
                self._gateway = None

    async def _run(self, call: AgentCall, url: str) -> str:
        where = call.environment
        terms = call.scope.terms
        assert terms is not None  # there is an endpoint
        tree = ProcessTree(self.memory_mb, lambda: terms.is_ignored)
        with tempfile.TemporaryDirectory(prefix="r3agent-", ignore_cleanup_errors=True) as own:
            file = Path(own) / "task.json"
            task = {"id": call.task.id, "messages": [*call.messages], "tools": [*call.task.tools]}
            file.write_text(json.dumps(task))
            cwd = where if isinstance(where, str | os.PathLike) else own
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(guard.__file__), str(os.getpid()), guard.ALL, *self.command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=cwd,
                env={**os.environ, **self.env, **_variables(url), "R3_TASK_FILE": str(file), MARK: tree.mark},
                start_new_session=True,
            )
            tree.session = process.pid
            watch = asyncio.create_task(tree.watch())
            try:
                stdout, stderr, *_ = await gather_all(
                    (
                        _read(process.stdout, int(self.output_mb * 2**20)),
                        _read_end(process.stderr, STDERR_CHARS),
                        _write(process.stdin, as_text(call.messages).encode()),
                        _end_rest(process, tree),
                    )
                )
                code = await process.wait()
            except _OverrunError:
                raise AgentError(f"{self!r} printed more than output_mb = {self.output_mb:g}") from None
            finally:
                watch.cancel()
                await asyncio.shield(asyncio.to_thread(tree.end))
                with suppress(TimeoutError):  # the end of a process is that of its pipes, which are read to theirs
                    async with asyncio.timeout(GRACE_S):
                        await gather_all(_read_end(pipe, 1) for pipe in (process.stdout, process.stderr))
                        await process.wait()
        if terms.is_ignored:
            raise terms.failure or StepLimitError(f"{self!r} goes on asking")
        if tree.overrun:
            raise AgentError(f"{self!r} used more memory than memory_mb = {self.memory_mb}, and was ended")
        if code:
            text = call.episode.redact(stderr.decode(errors="replace").strip())
            raise AgentError(f"{self!r} exited with {_exit(code)}: {text}")
        return stdout.decode(errors="replace").strip()


def as_text(messages: Sequence[Message]) -> str:
    """Render messages as text: those of user and system alone, those of others with their speaker."""
    parts: list[str] = []
    for message in messages:
        text = text_of(message.get("content"))
        calls = [json.dumps(call.get("function") or call) for call in message.get("tool_calls") or ()]
        speaker = SPEAKERS.get(str(message.get("role")), "")
        parts.append("\n".join([*([f"{speaker}: {text}" if speaker else text] if text else []), *calls]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _variables(url: str) -> dict[str, str]:
    """Return the variables by which SDKs find the gateway."""
    anthropic = url.removesuffix("/v1")
    given = (os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")
    no_proxy = ",".join(filter(None, given))
    return {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_BASE": url,
        "OPENAI_API_KEY": NO_KEY,
        "OPENAI_MODEL": POLICY,
        "ANTHROPIC_BASE_URL": anthropic,
        "ANTHROPIC_API_KEY": NO_KEY,
        "ANTHROPIC_MODEL": POLICY,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,  # which many programs prefer
    }


async def _read(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """Read a stream to its end.

    Raises:
        _OverrunError: it is longer than the limit.
    """
    assert stream is not None  # it is a pipe
    parts = bytearray()
    while piece := await stream.read(2**16):
        parts += piece
        if len(parts) > limit:
            raise _OverrunError
    return bytes(parts)


async def _read_end(stream: asyncio.StreamReader | None, length: int) -> bytes:
    """Read a stream to its end, and return the end of it."""
    assert stream is not None  # it is a pipe
    end = b""
    while piece := await stream.read(2**16):
        end = (end + piece)[-length:]
    return end


async def _write(stream: asyncio.StreamWriter | None, content: bytes) -> bytes:
    assert stream is not None  # it is a pipe
    with suppress(BrokenPipeError, ConnectionResetError):  # it reads the file, or nothing
        stream.write(content)
        await stream.drain()
        stream.close()
    return b""


async def _end_rest(process: asyncio.subprocess.Process, tree: ProcessTree) -> bytes:
    """End what a program leaves running when it ends, which may keep its stdout open."""
    while process.returncode is None:  # `wait` would wait for its stdout too
        await asyncio.sleep(POLL_S)
    await asyncio.to_thread(tree.end)
    return b""


def _exit(code: int) -> str:
    """Name an exit code; the guard returns 128 + N for signal N."""
    return f"{code} (signal {signal.Signals(code - 128).name})" if code - 128 in SIGNALS else str(code)
