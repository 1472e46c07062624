"""The labellers' pages: log in, see a comparison, answer, undo, pull the cord. Plain forms; a script adds keys."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, flash, g, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from ..steps import AlreadyAnswered, NothingToRetract
from .access import RESEARCHER, check_csrf, csrf_token, is_researcher, log_in, session_labeller
from .desk import SESSION, desk, refuse

pages = Blueprint("labelling", __name__)

MESSAGE_LIMIT = 300  # characters; messages wait in the cookie, which has room for 4 KB

KEYS = "1234567890"
"""The key of each completion on a page; from the eleventh on there is none."""

IN_OTHER_WORDS = {
    AlreadyAnswered: "You have already answered that one in another tab, and that answer stands. "
    "Z takes your last answer back.",
    NothingToRetract: "You have no answer left to take back.",
}
"""What people read instead of the store's sentences, which are for scripts."""

OPEN = {"labelling.login", "labelling.log_out"}
"""Pages for those who have not logged in."""


@pages.before_request
def admit() -> Response | None:
    """Send everybody else to the login; refuse forms from elsewhere."""
    check_csrf()
    if request.endpoint in OPEN:
        return None
    if is_researcher():
        return redirect(url_for("researcher.overview"), 303)
    g.labeller = session_labeller(desk().store)
    if g.labeller is None:
        session.clear()
        return redirect(url_for("labelling.login"), 303)
    return None


@pages.route("/login", methods=["GET", "POST"])
def login() -> Any:
    """The form for the token."""
    if request.method == "GET":
        csrf_token()
        return render_template("login.html", wrong=False)
    here = desk()
    role = log_in(here.store, here.throttle, here.researcher_token, request.form.get("token", "").strip())
    if role is None:
        return render_template("login.html", wrong=True), 403
    return redirect(url_for("researcher.overview" if role == RESEARCHER else "labelling.work"), 303)


@pages.post("/logout")
def log_out() -> Response:
    """End the session in this browser."""
    session.clear()
    return redirect(url_for("labelling.login"), 303)


@pages.get("/")
def work() -> str:
    """The comparison in hand, or word that there is none."""
    here = desk()
    assignment = here.store.take(g.labeller, task=here.task)
    progress = here.progress(g.labeller)
    return render_template(
        "done.html" if assignment is None else "label.html",
        work=assignment,
        instructions=here.instructions,
        progress=progress,
        answered=progress.labels + progress.skips + progress.flags,
        former=None if assignment is None else here.former_place(assignment),
        left=None if assignment is None else here.left(g.labeller),
        stopped=bool(here.stops()),
        shown_at=f"{time.time():.3f}",
        keys=KEYS,
    )


@pages.post("/answer")
def answer() -> Response:
    """Store a choice, a skip or a flag, and go on."""
    form = request.form
    said = {name: form[name] for name in ("skip", "flag") if name in form}
    place = _place(form["place"]) if "place" in form else None
    seconds = _seconds(form.get("seconds", ""), form.get("shown_at", ""))
    with flashed_refusals():
        desk().give(g.labeller, form.get("comparison", ""), place=place, seconds=seconds, **said)
    return redirect(url_for("labelling.work"), 303)


@pages.post("/undo")
def undo() -> Response:
    """Take the last answer back and show its comparison again."""
    with flashed_refusals():
        desk().store.retract(g.labeller, task=desk().task)
        flash("Your last answer is taken back. Here is its comparison again.")
    return redirect(url_for("labelling.work"), 303)


@pages.post("/stop")
def stop() -> Response:
    """Pull the cord."""
    with flashed_refusals():
        desk().stop(g.labeller, request.form.get("reason", ""))
        flash("Your report is stored. The training run stops at its next update, and the researcher reads your words.")
    return redirect(url_for("labelling.work"), 303)


@contextmanager
def flashed_refusals() -> Iterator[None]:
    """Where the store refuses an act, say so on the next page: in a labeller's words where that happens to people."""
    try:
        yield
    except (AlreadyAnswered, NothingToRetract) as error:
        flash(IN_OTHER_WORDS[type(error)])
    except ValueError as error:
        flash(f"Not stored: {error}"[:MESSAGE_LIMIT])


def _place(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text):
        refuse(400, "The field `place` is no whole number; load the page again.")
    return int(text)


def _seconds(measured: str, shown_at: str) -> float:
    """Seconds from display to answer, of a login at most: the script's measure, and without a script the server's."""
    try:
        seconds = float(measured) if measured else max(0.0, time.time() - float(shown_at))
        return seconds if math.isnan(seconds) else min(seconds, SESSION.total_seconds())
    except ValueError:
        refuse(400, "The fields `seconds` and `shown_at` are no numbers; load the page again.")
