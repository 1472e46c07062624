"""Real labelling pages: the command in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class PageProcess:
    """`python -m trl_ziegler.label`, by default on a free port; `address` is where, `port` a part of it."""

    def __init__(self, store: str, task: str = "sentiment", port: int = 0):
        command = [sys.executable, "-m", "trl_ziegler.label", "--store", store, "--task", task, "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        first = self.process.stdout.readline()
        said = re.fullmatch(r"Labelling page: (http://127\.0\.0\.1:(\d+)/)\n", first)
        assert said, first + self.process.communicate(timeout=30)[0]
        self.address = said[1]
        self.port = int(said[2])

    def kill(self) -> str:
        """Kill it at once (SIGKILL); return what else it printed."""
        self.process.kill()
        return self.process.communicate(timeout=30)[0]


@contextmanager
def served(store: str, port: int = 0) -> Iterator[PageProcess]:
    page = PageProcess(store, port=port)
    try:
        yield page
    finally:
        page.kill()
