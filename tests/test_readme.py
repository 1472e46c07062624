"""The README's script stays as short as a user of TRL would write it; tests/test_docs.py runs it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def script() -> str:
    return re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]


def test_script_is_short(script):
    assert len([line for line in script.splitlines() if line.strip()]) <= 15
