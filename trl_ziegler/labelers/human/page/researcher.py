"""The researcher's page: figures, requests to stop, and flagged comparisons, with the words that settle them."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response

from .access import RESEARCHER, check_csrf, is_researcher, session_labeller
from .desk import desk, refuse, within_limit
from .labelling import flashed_refusals
from .standing import LEAST_SHARED

pages = Blueprint("researcher", __name__, url_prefix="/researcher")

MOST_FLAGS = 50
"""Flagged comparisons shown at once, the oldest first."""


@pages.before_request
def admit() -> Response | None:
    """Only the researcher."""
    check_csrf()
    if is_researcher():
        return None
    if session_labeller(desk().store) is not None:
        raise Forbidden("This page is the researcher's; log out and log in with the researcher's token.")
    return redirect(url_for("labelling.login"), 303)


@pages.get("")
def overview() -> str:
    """Everything on one page."""
    here = desk()
    flags = here.store.flags()
    return render_template(
        "researcher.html",
        task=here.task,
        standing=here.standing(),
        least_shared=LEAST_SHARED,
        stops=here.stops(),
        flag_count=len(flags),
        flagged=[(flag, here.store.comparison(flag.comparison_id)) for flag in flags[:MOST_FLAGS]],
    )


@pages.post("/decide")
def decide() -> Response:
    """Keep a flagged comparison, or leave it out."""
    keep = {"yes": True, "no": False}.get(request.form.get("keep", ""))
    if keep is None:
        refuse(400, "The field `keep` is neither yes nor no; load the page again.")
    with flashed_refusals():
        desk().store.decide(_number("flag"), keep=keep, author=RESEARCHER, reason=_reason())
        desk().standing.forget()
    return redirect(url_for("researcher.overview"), 303)


@pages.post("/clear")
def clear() -> Response:
    """Settle a request to stop."""
    with flashed_refusals():
        desk().store.clear_stop(_number("request"), author=RESEARCHER, reason=_reason())
    return redirect(url_for("researcher.overview"), 303)


def _number(field: str) -> int:
    text = request.form.get(field, "")
    if not re.fullmatch("[0-9]{1,9}", text):
        refuse(400, f"The field `{field}` is no number; load the page again.")
    return int(text)


def _reason() -> Any:
    return within_limit(request.form.get("reason", ""))
