"""The README's script runs as it stands, with a tiny model in the place of the hub's."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def script() -> str:
    return re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]


def test_script_is_short(script):
    assert len([line for line in script.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_script_runs(script, make_causal_lm, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "gpt2"
    make_causal_lm().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    namespace: dict = {}
    exec(compile(script.replace('"gpt2"', repr(str(folder))), "README.md", "exec"), namespace)
    assert namespace["labels"].num_rows == 64


def test_paths_it_names_exist():
    root = README.parent
    for page in (README, root / "recipes" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
        for command in re.findall(r"recipes/[\w/.-]+\.(?:py|yaml)", page.read_text()):
            assert (root / command).is_file(), command
