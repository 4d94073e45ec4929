"""Endpoint that fails at random, in a process of its own that can be killed and comes back on its port."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import AbstractContextManager
from hashlib import sha256
from multiprocessing.connection import Connection
from typing import Any

import orjson

from r3agent.records.prompts import PROMPTS
from r3agent.testing import ScriptedEndpoint, random_faults

RIGHT = "right"

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["r3agent.run.stages", "r3agent.episodes.collect"]
)  # importing LangGraph anew takes seconds

REFLECT = {prompts.reflect_prompt for prompts in PROMPTS.values()}


def answer(body: dict[str, Any], choice: int) -> str:
    """Answer half of the questions right, and reflect; the same request has the same answer."""
    messages = body["messages"]
    if messages[-1]["content"] in REFLECT:
        return f"reflection {choice}"
    return RIGHT if sha256(orjson.dumps([messages, choice])).digest()[0] % 2 else "wrong"


class FaultyEndpoint(AbstractContextManager["FaultyEndpoint"]):
    """Process of a `ScriptedEndpoint`.

    Args:
        rate: share of the requests that meet one of `r3agent.testing.FAULTS`, except the fatal ones.
    """

    def __init__(self, rate: float, *, seed: int = 0) -> None:
        self._rate, self._seed, self._port = rate, seed, 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Start the process, on the port that it had before."""
        receiver, sender = processes.Pipe(duplex=False)
        self._seed += 1
        self._process = processes.Process(target=_serve, args=(self._rate, self._seed, self._port, sender), daemon=True)
        self._process.start()
        self._port = receiver.recv()

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.kill()
        self._process.join()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _serve(rate: float, seed: int, port: int, port_of: Connection) -> None:
    with ScriptedEndpoint(answer, faults=random_faults(rate, seed=seed), port=port) as endpoint:
        port_of.send(int(endpoint.url.split(":")[2].split("/")[0]))
        threading.Event().wait()
