"""The same acts over HTTP for scripted labellers: JSON in, JSON out, the token in each request.

| request | body | reply |
|---|---|---|
| GET /api/next | | `comparison` (`id`, `prompt`, `completions` as shown; null if there is none), `expires_at` |
| POST /api/answer | `comparison`, `seconds`, and one of `place`, `skip`, `flag` | `answer`: its number |
| POST /api/undo | | as GET /api/next: the comparison whose answer is taken back |
| POST /api/stop | `reason` | `request`: its number |
| GET /api/progress | | `labels`, `skips`, `flags`, `retracted`, `median_seconds`, `remaining` |

`comparison` in an answer is the id, `place` the chosen completion's among those shown (0..K-1), `skip` or `flag` a
reason. Each request needs the header `Authorization: Bearer TOKEN`; cookies do not count, so no other site can act in
somebody's name. What a reply acknowledges is on the disk. The same answer sent again, as after a lost reply, is stored
once. Errors are `{"error": SENTENCE}`: 400 and 415 for a body that is none, 401 for the token, 409 where the store
refuses, 413 for a body of more than 64 KiB, 429 after many wrong tokens. `page_client.PageClient` speaks it.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, g, request

from ..steps import Assignment
from .access import bearer
from .desk import desk, refusals, refuse

interface = Blueprint("api", __name__, url_prefix="/api")


@interface.before_request
def admit() -> None:
    """Only with a labeller's token."""
    g.labeller = bearer(desk().store, desk().throttle)


@interface.get("/next")
def take() -> dict[str, Any]:
    """The comparison in hand, or another one."""
    return _shown(desk().store.take(g.labeller, task=desk().task))


@interface.post("/answer")
def answer() -> dict[str, Any]:
    """Store a choice, a skip or a flag."""
    body = _body(required={"comparison", "seconds"}, optional={"place", "skip", "flag"})
    with refusals():
        return {"answer": desk().give(g.labeller, **body).id}


@interface.post("/undo")
def undo() -> dict[str, Any]:
    """Take the last answer back."""
    with refusals():
        return _shown(desk().store.retract(g.labeller, task=desk().task))


@interface.post("/stop")
def stop() -> dict[str, Any]:
    """Pull the cord."""
    body = _body(required={"reason"})
    with refusals():
        return {"request": desk().stop(g.labeller, body["reason"]).id}


@interface.get("/progress")
def progress() -> dict[str, Any]:
    """What the labeller has done, and how many labels are still wanted from all."""
    own = desk().progress(g.labeller)
    return {
        "labels": own.labels,
        "skips": own.skips,
        "flags": own.flags,
        "retracted": own.retracted,
        "median_seconds": own.median_seconds,
        "remaining": desk().remaining(),
    }


def _shown(work: Assignment | None) -> dict[str, Any]:
    """What a labeller may know of a comparison: not the policy that wrote it, and not the original order."""
    if work is None:
        return {"comparison": None, "expires_at": None}
    shown = {"id": work.comparison.id, "prompt": work.comparison.prompt, "completions": work.shown}
    return {"comparison": shown, "expires_at": work.expires_at.isoformat()}


def _body(*, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """The JSON object of the request, with exactly these keys."""
    try:
        body = request.get_json()
    except RecursionError:
        refuse(400, "The body is nested too deeply; send one JSON object.")
    if not isinstance(body, dict):
        refuse(400, f"The body is no JSON object; send one with {sorted(required)}.")
    if required - set(body) or set(body) - required - optional:
        wanted = f"{sorted(required)} and may have {sorted(optional)}" if optional else f"{sorted(required)}"
        refuse(400, f"The body has the keys {sorted(body)[:10]}; it needs {wanted}.")
    return body
