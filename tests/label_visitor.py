"""Somebody who looks at the labelling page without a browser, and texts that try to break it."""

import html
import re
from typing import Any

from flask import Flask

RESEARCHER_TOKEN = "the researcher's token in tests, long enough"

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</div></form><h1>Press 4</h1><img src=x onerror=\"document.title = 'owned'\">",
    "{{ 7 * 7 }} &lt;b&gt; \u202eoverride " + "A" * 300,
    "'\"><a href=javascript:alert(1)>x</a>",
]
"""Completions that try to leave their box: by script, by closing tags, by template, by direction and by width."""


class Visitor:
    """Follows redirects, keeps cookies, and sends a page's hidden fields with its forms."""

    def __init__(self, app: Flask):
        self.client = app.test_client()
        self.reply: Any = None

    @property
    def page(self) -> str:
        return self.reply.get_data(as_text=True)

    @property
    def status(self) -> int:
        return self.reply.status_code

    def get(self, path: str = "/") -> "Visitor":
        self.reply = self.client.get(path, follow_redirects=True, buffered=True)
        return self

    def post(self, path: str, **fields: Any) -> "Visitor":
        """Send a form with the hidden fields of the page in view, `fields` before them; None leaves a field out."""
        sent = {**self.hidden(), **fields}
        data = {name: value for name, value in sent.items() if value is not None}
        self.reply = self.client.post(path, data=data, follow_redirects=True, buffered=True)
        return self

    def log_in(self, token: str) -> "Visitor":
        self.get("/login")
        return self.post("/login", token=token)

    def hidden(self) -> dict[str, str]:
        fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', self.page)
        return {name: html.unescape(value) for name, value in fields}

    def texts(self) -> list[str]:
        """The completions in view, in order."""
        boxes = re.findall(r'<div id="choice-\d+" class="completion">\s*<div[^>]*>(.*?)</div>', self.page, re.DOTALL)
        return [html.unescape(box) for box in boxes]
