"""Served models, and vLLM's model, adapter and development routes that change them."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from r3agent.errors import ConfigError
from r3agent.serve.engine.engine import Engine
from r3agent.serve.engine.lora import Adapter, read_adapter
from r3agent.serve.engine.model import read_matching, replace_weights
from r3agent.serve.errors import APIError, json_response
from r3agent.serve.http.protocol import (
    CollectiveRPCRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
    WeightVersionRequest,
    parse,
)


class ModelRoutes:
    """Handlers of the served models: the base model, and adapters whose names never change their weights."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._served = engine.served
        self._created = int(time.time())
        self._adapters: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        self._weight_version = "default"

    def resolve(self, name: str | None) -> tuple[str, Adapter | None]:
        """Return the model name for the response, and its adapter.

        Raises:
            APIError: there is no model of that name.
        """
        if name is None or name == self._served.name:
            return self._served.name, None
        if name not in self._adapters:
            raise APIError(f"The model `{name}` does not exist.", HTTPStatus.NOT_FOUND, "model")
        return name, self._adapters[name]

    async def list_models(self, http: Request) -> Response:
        base = self._card(self._served.name, self._served.path, None, self._served.max_model_len)
        adapters = [self._card(a.name, a.path, self._served.name, None) for a in self._adapters.values()]
        return json_response({"object": "list", "data": [base, *adapters]})

    def _card(self, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "r3agent"}
        return {**card, "root": root, "parent": parent, "max_model_len": max_model_len, "permission": []}

    async def load_adapter(self, http: Request) -> Response:
        body = parse(LoadAdapterRequest, await http.body())
        name = body.lora_name
        if body.load_inplace:
            raise APIError("load_inplace = True: a name never changes its weights here", param="load_inplace")
        async with self._changing:
            if name == self._served.name:
                raise APIError(f"The lora adapter '{name}' conflicts with a served base model.", param="lora_name")
            if name in self._adapters:
                raise APIError(
                    f"The lora adapter '{name}' has already been loaded. A name never changes its weights here: load "
                    "them under another name.",
                    param="lora_name",
                )
            try:
                self._adapters[name] = await asyncio.to_thread(read_adapter, name, body.lora_path, self._served.model)
            except FileNotFoundError as error:
                message = f"Loading lora {name} failed: {error}"
                raise APIError(message, HTTPStatus.NOT_FOUND, "lora_path") from error
            except ConfigError as error:
                raise APIError(str(error), param="lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_adapter(self, http: Request) -> Response:
        """Remove an adapter, and respond when the requests that use it have finished or are paused."""
        name = parse(UnloadAdapterRequest, await http.body()).lora_name
        if name not in self._adapters:
            raise APIError(f"The lora adapter '{name}' cannot be found.", HTTPStatus.NOT_FOUND, "lora_name")
        await asyncio.wrap_future(self._engine.when_unused(self._adapters.pop(name)))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def collective_rpc(self, http: Request) -> Response:
        """Read the base model's weights again, and replace them when the batch is empty."""
        body = parse(CollectiveRPCRequest, await http.body())
        if body.method != "reload_weights" or body.args:
            raise APIError(f"method = {body.method!r}: only reload_weights, without args, is allowed", param="method")
        path, model = body.kwargs.weights_path, self._served.model
        async with self._changing:
            if self._adapters:
                raise APIError(
                    f"adapters are loaded on the present weights: {', '.join(self._adapters)}; unload them first"
                )
            if path is not None and not Path(path).is_dir():
                raise APIError(f"weights_path {path}: there is no such directory", param="weights_path")
            source = path or self._served.path
            try:
                fresh = await asyncio.to_thread(read_matching, model, source)
            except ConfigError as error:
                raise APIError(str(error), param="weights_path") from error
            await asyncio.wrap_future(self._engine.when_empty(lambda: replace_weights(model, fresh)))
            self._served.path = source
        return json_response({"results": [None]})

    async def weight_info(self, http: Request) -> Response:
        return json_response({"weight_version": self._weight_version})

    async def update_weight_version(self, http: Request) -> Response:
        self._weight_version = parse(WeightVersionRequest, await http.body()).new_version
        return json_response({"success": True, "new_version": self._weight_version})


class ControlRoutes:
    """Handlers of the server's state: health, load, pause and resume."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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

    async def reset_prefix_cache(self, http: Request) -> Response:
        """Confirm without doing anything: prefixes are shared only within one request."""
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
