"""LangGraph's checkpointers on a disk, by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

Saver = BaseCheckpointSaver[Any]


class Where(NamedTuple):
    kind: Literal["sqlite", "postgres"]
    address: str
    """A file, or the server's URL."""


@contextmanager
def saver(where: Where, *mixins: type) -> Iterator[Saver]:
    kind: Any = PostgresSaver if where.kind == "postgres" else SqliteSaver
    with _with(kind, mixins).from_conn_string(where.address) as opened:
        opened.setup()
        yield opened


@asynccontextmanager
async def async_saver(where: Where, *mixins: type) -> AsyncIterator[Saver]:
    kind: Any = AsyncPostgresSaver if where.kind == "postgres" else AsyncSqliteSaver
    async with _with(kind, mixins).from_conn_string(where.address) as opened:
        await opened.setup()
        yield opened


def _with(kind: Any, mixins: tuple[type, ...]) -> Any:
    return type(kind.__name__, (*mixins, kind), {}) if mixins else kind
