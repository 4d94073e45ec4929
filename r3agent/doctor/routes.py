"""Probe the routes that change weights, without using any of them.

GET on a POST route returns 405 if the route exists and 404 if not. The request to load an adapter from a missing
directory gives one error message if the server can load adapters and another if it cannot; vLLM logs that error with
the name of the probe.
"""

from __future__ import annotations

from http import HTTPStatus
from uuid import uuid4

from r3agent._util.aio import gather_all
from r3agent.deploy.server import DEV_ROUTES, LOAD_REMEDIES, LORA_ROUTES
from r3agent.doctor.probe import EndpointProbe, RouteReply
from r3agent.doctor.records import Check
from r3agent.http.errors import NO_ROUTE

PROBE = "r3agent-doctor-probe"

POSTED = {
    "weight reload": ("/collective_rpc", "/update_weight_version"),
    "pause and resume": ("/pause", "/resume"),
    "prefix-cache reset": ("/reset_prefix_cache",),
}
"""Required routes, by check."""

ROUTES = ("LoRA load", "weight version", *POSTED)


async def route_checks(probe: EndpointProbe) -> list[Check]:
    """Check the routes that a deploy to this server can use."""
    paths = [f"/{PROBE}", "/weight_info", "/is_paused", *(path for needed in POSTED.values() for path in needed)]
    replies = await gather_all(probe.call(path, of_server=True) for path in paths)
    by_path = dict(zip(paths, replies, strict=True))
    checks = [await _lora(probe), _weight_version(by_path["/weight_info"])]
    for name, needed in POSTED.items():
        checks.append(_posted(name, {path: by_path[path] for path in needed}, control=by_path[f"/{PROBE}"]))
    paused = by_path["/is_paused"].body
    if isinstance(paused, dict) and paused.get("is_paused") is True:
        stuck = {"detail": "the server is paused and answers nothing now", "remedy": "POST /resume to the server"}
        checks = [c.model_copy(update=stuck) if c.name == "pause and resume" else c for c in checks]
    return checks


async def _lora(probe: EndpointProbe) -> Check:
    name = "LoRA load"
    adapter = f"{PROBE}-{uuid4().hex[:8]}"
    reply = await probe.call("/load_lora_adapter", {"lora_name": adapter, "lora_path": f"/nonexistent/{adapter}"})
    if reply.status is not None and reply.status < 300:
        await probe.call("/unload_lora_adapter", {"lora_name": adapter})
        detail = "an adapter that does not exist was accepted"
        return Check(name=name, status="unknown", detail=f"{detail} ({reply}), and unloaded again")
    if "not enabled" in reply.message:
        return Check(name=name, status="no", detail=str(reply), remedy=LOAD_REMEDIES["not enabled"])
    if adapter in reply.message:  # the server looked for the adapter
        return Check(name=name, status="yes", detail="an adapter that does not exist is refused for that reason")
    if reply.status in NO_ROUTE:
        return Check(name=name, status="no", detail=str(reply), remedy=LORA_ROUTES)
    return Check(name=name, status="unknown", detail=str(reply))


def _weight_version(reply: RouteReply) -> Check:
    name = "weight version"
    if isinstance(reply.body, dict) and "weight_version" in reply.body:
        return Check(name=name, status="yes", detail=repr(reply.body["weight_version"]))
    if reply.status in NO_ROUTE:
        return Check(name=name, status="no", detail=str(reply), remedy=DEV_ROUTES)
    return Check(name=name, status="unknown", detail=str(reply))


def _posted(name: str, replies: dict[str, RouteReply], control: RouteReply) -> Check:
    detail = ", ".join(f"GET {path}: HTTP {r.status}" if r.status else f"{path}: {r}" for path, r in replies.items())
    statuses = {reply.status for reply in replies.values()}
    if HTTPStatus.NOT_FOUND in statuses:
        return Check(name=name, status="no", detail=detail, remedy=DEV_ROUTES)
    if control.status != HTTPStatus.NOT_FOUND:
        why = f"a route that cannot exist is answered in the same way ({control.status})"
        return Check(name=name, status="unknown", detail=f"{detail}; {why}")
    if statuses == {HTTPStatus.METHOD_NOT_ALLOWED}:
        return Check(name=name, status="yes", detail=f"POST {', '.join(replies)}")
    return Check(name=name, status="unknown", detail=detail)
