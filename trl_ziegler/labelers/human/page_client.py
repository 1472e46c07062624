"""A scripted labeller's side of the labelling page: `page/api.py` with the standard library alone."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener


class PageClient:
    """One labeller at a labelling page.

    Args:
        address (`str`): where the page is, for example `http://127.0.0.1:8300/`.
        token (`str`): the labeller's.
        timeout (`float`, *optional*, defaults to `60.0`): seconds to wait for a reply.

    All methods raise `PermissionError` for a wrong token, `ValueError` with the page's sentence for what it refuses,
    `RuntimeError` for its own failures, and `OSError` if it cannot be reached.

    Example:

    ```python
    >>> page = PageClient("http://127.0.0.1:8300/", token)
    >>> while (work := page.next()) is not None:
    ...     page.answer(work["id"], place=work["completions"].index(max(work["completions"], key=len)), seconds=1.0)
    ```
    """

    def __init__(self, address: str, token: str, timeout: float = 60.0):
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError(f"address={address!r} is no page; give one like http://127.0.0.1:8300/.")
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._timeout = timeout
        self._opener = build_opener(ProxyHandler({}))  # a token is not for proxies

    def next(self) -> dict[str, Any] | None:
        """The comparison in hand or another one (`id`, `prompt`, `completions` as shown); None if there is nothing."""
        return self._ask("GET", "next")["comparison"]

    def answer(self, comparison: str, *, seconds: float, **said: int | str) -> int:
        """Give one of `place` (0..K-1 as shown), `skip` or `flag` (a reason); return the answer's number."""
        return self._ask("POST", "answer", {"comparison": comparison, "seconds": seconds, **said})["answer"]

    def undo(self) -> dict[str, Any]:
        """Take the last answer back; return its comparison."""
        return self._ask("POST", "undo")["comparison"]

    def stop(self, reason: str) -> int:
        """Say that something is wrong, which stops training; return the request's number."""
        return self._ask("POST", "stop", {"reason": reason})["request"]

    def progress(self) -> dict[str, Any]:
        """Own `labels`, `skips`, `flags`, `retracted`, `median_seconds`, and the labels `remaining` for all."""
        return self._ask("GET", "progress")

    def _ask(self, method: str, act: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._address}/api/{act}", data=data, headers=self._headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout) as reply:
                return json.load(reply)
        except HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise _refusal(error.code, said) from None
        except HTTPException as error:  # a server that dies in the middle of its reply
            raise ConnectionError(f"The reply of {self._address} is no HTTP ({error!r}).") from error


def _refusal(status: int, said: str) -> Exception:
    sentence = json.loads(said)["error"] if said.startswith('{"error"') else said[:200]
    kind = PermissionError if status in (401, 403, 429) else ValueError if status < 500 else RuntimeError
    return kind(f"The labelling page refuses ({status}): {sentence}")
