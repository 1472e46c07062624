"""The site: its navigation holds every page, its reference every public name, its settings ask for nothing online."""

import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import trl_ziegler
import trl_ziegler.functional
import trl_ziegler.labelers
import trl_ziegler.labelers.human
import trl_ziegler.metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ENTRIES = [
    name
    for page in sorted((DOCS / "reference").glob("*.md"))
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
]


@pytest.fixture
def settings() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(navigation: list | dict | str) -> Iterator[str]:
    """Every page that a part of the navigation names."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for part in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from pages_of(part)


def test_navigation_holds_every_page_once(settings):
    pages = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(pages_of(settings["nav"])) == pages


def public_names() -> Iterator[str]:
    """Names of the package, and of the parts that are imported on their own, as the reference may write them."""
    for module in (trl_ziegler, trl_ziegler.labelers, trl_ziegler.labelers.human, trl_ziegler.metrics):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    for name, value in vars(trl_ziegler.functional).items():
        if getattr(value, "__module__", "") == "trl_ziegler.functional" and not name.startswith("_"):
            yield f"trl_ziegler.functional.{name}"


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_is_in_the_reference(name):
    assert {name, f"trl_ziegler.{name.rsplit('.', 1)[-1]}"} & set(ENTRIES)


def test_no_name_is_in_the_reference_twice():
    assert sorted(set(ENTRIES)) == sorted(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_the_reference_can_be_imported_from_where_it_says(name):
    module, _, attribute = name.rpartition(".")
    getattr(importlib.import_module(module), attribute)


def test_reading_the_site_needs_no_network(settings):
    assert settings["theme"]["font"] is False
    assert settings["use_directory_urls"] is False
    assert not {"extra_javascript", "analytics"} & {*settings, *settings["extra"]}


@pytest.fixture
def hooks() -> dict:
    return runpy.run_path(str(DOCS / "hooks.py"))


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("[a](../recipes/README.md)", "a"),
        ("[a](results.md#x) [b](images/b.png)", "[a](results.md#x) [b](images/b.png)"),
        ("[a](https://example.org/../b)", "[a](https://example.org/../b)"),
    ],
)
def test_links_out_of_the_site_become_text(hooks, markdown, shown):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    assert hooks["on_page_markdown"](markdown, page=page) == shown
    page.file.src_uri = "tutorials/tldr.md"
    assert hooks["on_page_markdown"](markdown.replace("(../", "(../../"), page=page) == shown


def test_names_in_brackets_become_links_where_there_is_an_entry(hooks):
    html = "[<code>Task</code>] [<code>~datasets.Dataset</code>] <code>[`~peft.PeftModel`], *optional*</code>"
    assert hooks["on_page_content"](html) == (
        '<autoref identifier="trl_ziegler.Task" optional><code>Task</code></autoref> <code>Dataset</code> '
        "<code>PeftModel, optional</code>"
    )


def test_a_default_is_shown_once(hooks):
    html = "(<code>str, *optional*, defaults to `'x'`</code>, default: <code>'x'</code>)"
    assert hooks["on_page_content"](html) == "(<code>str</code>, default: <code>'x'</code>)"


def test_long_names_in_tables_break_at_their_joints(hooks):
    html = "<td><code>a/long_name.py::test</code> <code>short_name</code></td> <code>a/long_name.py::test</code>"
    broken = "a/<wbr>long_<wbr>name.py::<wbr>test"
    assert hooks["on_page_content"](html) == html.replace("a/long_name.py::test", broken, 1)


def test_the_picture_of_the_layers_is_the_code_as_it_is():
    drawn = runpy.run_path(str(DOCS / "architecture.py"))
    assert drawn["draw"]() == drawn["PICTURE"].read_text(encoding="utf-8"), "run `python docs/architecture.py`"


def test_the_picture_shows_every_layer():
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["LAYERS"]
    assert set(runpy.run_path(str(DOCS / "architecture.py"))["LAYERS"]) == layers.keys() - {"flat names"}
