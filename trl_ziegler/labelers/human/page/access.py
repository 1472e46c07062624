"""Who is asking. People have a session after login by token; scripts send their token with each request.

The cookie holds the number of the token, not the token; once a labeller's token is replaced, the sessions and requests
of the former one are dead. It is signed with a key that follows from the researcher's token, so that a restarted
server knows its sessions. A form counts only with the CSRF token of its session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque

from flask import request, session
from werkzeug.exceptions import Forbidden, TooManyRequests, Unauthorized

from ..queries import valid_token_ids
from ..schema import Token
from ..store import LabelStore

RESEARCHER = "researcher"
LABELLER = "labeller"

ATTEMPTS = 20
"""Wrong tokens from one address within `WINDOW` seconds after which it has to wait."""

WINDOW = 60.0

MOST_ADDRESSES = 10_000  # of which attempts are remembered


class Throttle:
    """Counts wrong tokens by address, which many people share behind a proxy or a router: right ones always pass.

    Tokens have 256 random bits, so this is not what keeps guessers out; it tells them, and broken scripts, to stop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, deque[float]] = {}

    def failed(self, address: str) -> None:
        """Note a wrong token, or refuse the address that has sent too many."""
        now = time.monotonic()
        with self._lock:
            if len(self._failures) >= MOST_ADDRESSES:
                self._failures.clear()
            failures = self._failures.setdefault(address, deque())
            while failures and failures[0] < now - WINDOW:
                failures.popleft()
            if len(failures) >= ATTEMPTS:
                raise TooManyRequests("Too many wrong tokens came from your address; wait a minute.", retry_after=60)
            failures.append(now)


def session_key(researcher_token: str) -> str:
    """The key that signs cookies."""
    return hmac.new(researcher_token.encode(), b"session cookies", hashlib.sha256).hexdigest()


def csrf_token() -> str:
    """The session's; its forms carry it, and other sites cannot read it."""
    if "csrf" not in session:
        session["csrf"] = secrets.token_urlsafe()
    return session["csrf"]


def check_csrf() -> None:
    """Refuse a form that does not come from a page of the visitor's session."""
    if request.method == "POST" and not _equal(
        request.form.get("csrf", ""), session.get("csrf") or secrets.token_hex()
    ):
        raise Forbidden("The form does not belong to your session; load the page again and repeat what you did.")


def log_in(store: LabelStore, throttle: Throttle, researcher_token: str, token: str) -> str | None:
    """Begin a session for the owner of `token`; return the role, or None if nobody has it."""
    if _equal(token, researcher_token):
        _begin(role=RESEARCHER)
        return RESEARCHER
    # Read before the token is checked: if it is replaced meanwhile, its session must not get its successor's number.
    numbers = _token_numbers(store)
    name = store.authenticate(token)
    if name is None:
        throttle.failed(request.remote_addr or "")
        return None
    _begin(role=LABELLER, name=name, token=numbers.get(name))
    return LABELLER


def session_labeller(store: LabelStore) -> str | None:
    """The labeller who is logged in, or None if nobody is or the token was replaced."""
    if session.get("role") != LABELLER:
        return None
    name, number = session["name"], session["token"]
    return name if number is not None and _token_numbers(store, name).get(name) == number else None


def is_researcher() -> bool:
    """Whether this is the researcher's session."""
    return session.get("role") == RESEARCHER


def bearer(store: LabelStore, throttle: Throttle) -> str:
    """The labeller whose token the request carries in its `Authorization` header; cookies do not count here."""
    sent = request.authorization
    if sent is None or sent.type != "bearer" or not sent.token:
        raise Unauthorized("The request has no token; send the header `Authorization: Bearer TOKEN`.")
    name = store.authenticate(sent.token)
    if name is None:
        throttle.failed(request.remote_addr or "")
        raise Unauthorized("The token is not valid; ask the researcher for yours.")
    return name


def _begin(**facts: str | int | None) -> None:
    session.clear()  # with its CSRF token: pages from before the login are of no use after it
    session.update(facts)


def _token_numbers(store: LabelStore, labeller: str | None = None) -> dict[str, int]:
    """The number of the valid token of each labeller."""
    query = valid_token_ids()
    with store.reading() as transaction:
        rows = transaction.execute(query if labeller is None else query.where(Token.labeller == labeller))
        return {name: number for name, number in rows}


def _equal(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), expected.encode())
