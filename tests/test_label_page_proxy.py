"""The page behind a web server with TLS: whom it takes a visitor for."""

import threading
from urllib.request import Request, urlopen

import pytest
from flask import Flask, request

from trl_ziegler.labelers.human.page import Server


@pytest.fixture
def visitor():
    """`visitor(proxy)`: address and scheme of a visitor whom somebody on this machine calls 203.0.113.9 by TLS."""
    servers = []

    def visit(proxy):
        app = Flask("echo")
        app.add_url_rule("/", view_func=lambda: f"{request.remote_addr} {request.scheme}")
        server = Server(app, proxy=proxy)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        named = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9", "X-Forwarded-Proto": "https"}
        with urlopen(Request(server.address, headers=named), timeout=30) as reply:
            return reply.read().decode()

    yield visit
    for server, thread in servers:
        server.__exit__(None, None, None)
        thread.join(timeout=30)


def test_the_proxy_is_believed_about_its_own_visitor(visitor):
    assert visitor("127.0.0.1") == "203.0.113.9 https"  # the address before it is the visitor's own tale


@pytest.mark.parametrize("proxy", [None, "192.0.2.1"], ids=["no proxy", "another proxy"])
def test_nobody_else_is(visitor, proxy):
    assert visitor(proxy) == "127.0.0.1 http"
