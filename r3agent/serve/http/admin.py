"""What is served, and changing it: vLLM's model, adapter and development routes."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from r3agent.serve.engine.engine import Engine
from r3agent.serve.engine.errors import APIError, json_response
from r3agent.serve.http.models import Models
from r3agent.serve.http.protocol import (
    CollectiveRPCRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
    WeightVersionRequest,
    parse,
)


class AdminRoutes:
    """Everything but generation."""

    def __init__(self, engine: Engine, models: Models) -> None:
        self._engine = engine
        self._models = models
        self._weight_version = "default"

    async def health(self, http: Request) -> Response:
        return Response(status_code=200 if self._engine.is_running else 503)

    async def version(self, http: Request) -> Response:
        try:
            number = version("r3agent")
        except PackageNotFoundError:
            number = "unknown"
        return json_response({"version": number, "server": "r3agent"})

    async def load(self, http: Request) -> Response:
        return json_response({"server_load": self._engine.load})

    async def models(self, http: Request) -> Response:
        return json_response({"object": "list", "data": self._models.cards()})

    async def load_adapter(self, http: Request) -> Response:
        body = parse(LoadAdapterRequest, await http.body())
        if body.load_inplace:
            raise APIError("load_inplace = True: a name never changes its weights here", param="load_inplace")
        await self._models.load_adapter(body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, http: Request) -> Response:
        body = parse(UnloadAdapterRequest, await http.body())
        await self._models.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def collective_rpc(self, http: Request) -> Response:
        body = parse(CollectiveRPCRequest, await http.body())
        if body.method != "reload_weights" or body.args:
            raise APIError(f"method = {body.method!r}: only reload_weights, without args, is allowed", param="method")
        await self._models.reload(body.kwargs.weights_path)
        return json_response({"results": [None]})

    async def reset_prefix_cache(self, http: Request) -> Response:
        """Prefixes are shared within one request only, so nothing outlives it."""
        return json_response({"success": True})

    async def pause(self, http: Request) -> Response:
        mode = http.query_params.get("mode", "abort")
        match mode:
            case "abort" | "wait" | "keep":
                await asyncio.wrap_future(self._engine.pause(mode))
            case _:
                raise APIError(f"mode = {mode!r}: it is one of abort, wait and keep", param="mode")
        return json_response({"status": "paused"})

    async def resume(self, http: Request) -> Response:
        self._engine.resume()
        return json_response({"status": "resumed"})

    async def is_paused(self, http: Request) -> Response:
        return json_response({"is_paused": self._engine.is_paused})

    async def weight_info(self, http: Request) -> Response:
        return json_response({"weight_version": self._weight_version})

    async def update_weight_version(self, http: Request) -> Response:
        self._weight_version = parse(WeightVersionRequest, await http.body()).new_version
        return json_response({"success": True, "new_version": self._weight_version})
