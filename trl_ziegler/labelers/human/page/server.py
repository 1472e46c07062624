"""An application bound to an address: waitress, with the page's limits."""

from __future__ import annotations

import socket
from types import TracebackType

import waitress
from flask import Flask

from .app import BODY_LIMIT

THREADS = 8
"""Requests at the same time; the store's writers follow each other anyway."""


class Server:
    """Serves `app` at `host` and `port` (0 for any free one); the address is taken on construction.

    `proxy` is the IP address of a web server in front of it, which is believed who the visitor is (X-Forwarded-For)
    and that the way to them is encrypted (X-Forwarded-Proto); nobody else is.

    Raises:
        OSError: the address is not to be had.
    """

    def __init__(self, app: Flask, host: str = "127.0.0.1", port: int = 0, proxy: str | None = None):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self._server = waitress.create_server(
            app,
            sockets=[self._socket],
            threads=THREADS,
            max_request_body_size=BODY_LIMIT,
            max_request_header_size=32 * 1024,
            connection_limit=500,
            channel_timeout=60,
            ident=None,
            trusted_proxy=proxy,
            trusted_proxy_headers=() if proxy is None else ("x-forwarded-for", "x-forwarded-proto"),
        )
        bound, self.port = self._socket.getsockname()[:2]
        self.address = f"http://[{bound}]:{self.port}/" if ":" in bound else f"http://{bound}:{self.port}/"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is being answered is answered; a thread that were still at it would find its socket gone.
        self._server.task_dispatcher.shutdown()
        self._server.close()

    def run(self) -> None:
        """Serve until interrupted."""
        self._server.run()
