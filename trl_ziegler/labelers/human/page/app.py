"""The Flask application: what it is made of, its limits, the headers of every answer, and its errors."""

from __future__ import annotations

from hashlib import sha256

from flask import Flask, Response, jsonify, render_template, request
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException

from ..queries import NO_TASK
from ..store import LabelStore
from . import api, labelling, researcher
from .access import Throttle, csrf_token, session_key
from .desk import EXTENSION, REASON_LIMIT, SESSION, Cached, Desk, messages
from .instructions import Instructions, read_instructions
from .standing import read_standing

BODY_LIMIT = 64 * 1024
"""Bytes of a request's body; reasons and answers are far smaller."""

STANDING_SECONDS = 10.0
"""How old the figures of the researcher's page may be; they take seconds to read in a large store."""

LEAST_TOKEN = 32  # characters of the researcher's token, which signs the cookies too

HEADERS = {
    # Everything comes from this server, nothing runs inside the page's own text, and no other page may frame it.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(
    store: LabelStore,
    *,
    researcher_token: str,
    task: str | None = None,
    instructions: Instructions | None = None,
    tls: bool = False,
) -> Flask:
    """The labelling page of a store, as a WSGI application for any number of threads.

    Args:
        store (`LabelStore`): where comparisons come from and answers go.
        researcher_token (`str`): opens the researcher's page; at least 32 characters. Cookies are signed with a key
            that follows from it, so another token ends all sessions.
        task (`str`, *optional*): show only comparisons of this task and such that name none; by default, only such
            that name none, since the others ask another question.
        instructions (`Instructions`, *optional*): what labellers are told; by default the text that comes with `task`.
        tls (`bool`, *optional*, defaults to `False`): browsers reach the page by TLS only (a web server in front of it
            sees to that), so they are told to send its cookies no other way.

    Raises:
        ValueError: a short token, or a task that comes without instructions.

    Example:

    ```python
    >>> store = LabelStore("labels.db")
    >>> app = create_app(store, researcher_token=secrets.token_urlsafe(), task="sentiment")
    >>> app.test_client().get("/login").status_code
    200
    ```
    """
    if len(researcher_token) < LEAST_TOKEN:
        raise ValueError(
            f"researcher_token has {len(researcher_token)} characters; give at least {LEAST_TOKEN} random ones, "
            "for example of `secrets.token_urlsafe()`."
        )
    served = NO_TASK if task is None else task
    app = Flask(__name__)
    _configure(app, session_key(researcher_token), tls)
    app.extensions[EXTENSION] = Desk(
        store=store,
        task=served,
        instructions=read_instructions(task) if instructions is None else instructions,
        researcher_token=researcher_token,
        throttle=Throttle(),
        standing=Cached(lambda: read_standing(store, served), STANDING_SECONDS),
    )
    for part in (labelling.pages, researcher.pages, api.interface):
        app.register_blueprint(part)
    app.register_error_handler(HTTPException, _error)
    app.after_request(_add_headers)
    return app


def _configure(app: Flask, key: str, tls: bool) -> None:
    app.config.update(
        SECRET_KEY=key,
        # Browsers send cookies to all ports of a host: two pages on one machine need two names.
        SESSION_COOKIE_NAME=f"labelling-{sha256(key.encode()).hexdigest()[:12]}",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_SECURE=tls,
        PERMANENT_SESSION_LIFETIME=SESSION,
        MAX_CONTENT_LENGTH=BODY_LIMIT,
        MAX_FORM_MEMORY_SIZE=BODY_LIMIT,
        MAX_FORM_PARTS=20,
    )
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.globals.update(csrf_token=csrf_token, messages=messages, reason_limit=REASON_LIMIT)


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    # The two files of the page may be kept and asked about; pages show what others must not see.
    response.headers["Cache-Control"] = "no-cache" if request.endpoint == "static" else "no-store"
    return response


def _error(error: HTTPException) -> Response:
    """One sentence, as JSON for scripts and as a page for people."""
    if request.path.startswith("/api/"):
        response = jsonify(error=error.description)
    else:
        response = Response(render_template("error.html", error=error), mimetype="text/html")
    response.status_code = error.code or 500
    for name, value in error.get_headers(request.environ):
        if name in ("Retry-After", "Allow", "WWW-Authenticate"):
            response.headers[name] = value
    return response
