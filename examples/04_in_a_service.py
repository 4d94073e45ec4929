"""FastAPI service with streamed tokens, a health check and graceful shutdown, which always uses the live version.

Needs `fastapi`, `uvicorn`, and a run with a running server: `r3agent serve bundled --port 8000`,
`r3agent deploy --run runs/mine`.

    R3AGENT_RUN=runs/mine python examples/04_in_a_service.py
    curl -N localhost:8080/stream --json '{"numbers": [2, 3, 4], "target": 20}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from r3agent import OpenAIPolicy, PolicyError, Sampling, build_graph
from r3agent.run.stages import Run
from r3agent.tasks.countdown import make_task
from r3agent.verifiers import find_verifier

run = Run(os.environ.get("R3AGENT_RUN", "runs/default"))
settings = run.config.policy
live = f"{run.ensure_live().name}@live"  # resolved for every request, so that a deploy takes effect
access = settings.policy_access()
policy = OpenAIPolicy(
    settings.base_url, live, registry=run.registry, sampling=Sampling(max_tokens=24), outage_s=5, **access
)
graph = build_graph(policy=policy, verifier=find_verifier("countdown"), stream=True).compile()


class Puzzle(BaseModel):
    numbers: list[int]
    target: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with policy:  # closed when uvicorn has finished the open requests at shutdown
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(PolicyError)
async def unavailable(request: Request, error: PolicyError) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


@app.post("/answer")
async def answer(puzzle: Puzzle) -> dict:
    return await graph.ainvoke({"task": make_task(puzzle.numbers, puzzle.target).model_dump()})


@app.post("/stream", response_class=EventSourceResponse)
async def stream(puzzle: Puzzle) -> AsyncIterator[ServerSentEvent]:
    task = make_task(puzzle.numbers, puzzle.target).model_dump()
    try:
        async for mode, data in graph.astream({"task": task}, stream_mode=["custom", "values"]):
            if mode == "custom":
                yield ServerSentEvent(event="delta", data=data)
        yield ServerSentEvent(event="done", data={"answer": data["answer"], "passed": data["passed"]})
    except PolicyError as error:  # the HTTP status was already sent
        yield ServerSentEvent(event="error", data=str(error))


@app.get("/health")
async def health() -> Response:
    base_url = run.registry.live_base_url or settings.base_url
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {access['api_key']}"}, timeout=5) as client:
        try:
            healthy = (await client.get(f"{base_url}/models")).is_success
        except httpx.HTTPError:
            healthy = False
    return JSONResponse({"live": run.registry.live, "policy": healthy}, status_code=200 if healthy else 503)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8080")), timeout_graceful_shutdown=60)
