"""`docs/migration.md` against TRL's classes and ours: every argument, default, metric and defect."""

import inspect
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import TrainingArguments

from trl_ziegler import ZieglerPPOConfig, ZieglerPPOTrainer
from trl_ziegler._compat import PPOConfig, PPOTrainer
from trl_ziegler.ppo_config import DERIVED, REFUSED, UpdatePlan

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEXT = (DOCS / "migration.md").read_text(encoding="utf-8")
OF_TRL_1_12 = pytest.mark.skipif(not version("trl").startswith("1.12."), reason="the page is about TRL 1.12")


def table(*header: str) -> list[list[str]]:
    """The cells, without code marks around a whole one, of the rows of every table with this header."""
    lines = iter(TEXT.splitlines())
    rows = []
    for line in lines:
        if line == f"| {' | '.join(header)} |":
            assert set(next(lines)) <= set("|- ")
            for row in iter(lambda: next(lines, ""), ""):
                cells = (cell.strip() for cell in row.strip("|").split("|"))
                rows.append([re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in cells])
    return rows


FIELDS = {row[0]: row for row in table("field", "TRL", "here", "what to know")}
ADDED = {row[0]: row for row in table("field", "default", "what it does")}
ARGUMENTS = {row[0]: row[1] for row in table("argument", "here", "what to know")}
METRICS = {row[0]: row[1] for row in table("TRL's key", "here", "what to know")}
DEFECTS = {row[0]: row[2] for row in table("no.", "what happened", "test")}


def defaults(config: type) -> dict:
    return {item.name: item.default for item in fields(config)}


def own_fields(config: type) -> set[str]:
    """What TRL's config classes declare, and not transformers' alone."""
    return {name for base in config.__mro__ if base.__module__.startswith("trl.") for name in base.__annotations__}


def written(value: object) -> str:
    """A default as the page has it: no quotes, a model's name without its owner."""
    return str(value).rsplit("/", 1)[-1]


@OF_TRL_1_12
def test_every_field_of_stock_has_a_row_with_its_default():
    stock = defaults(PPOConfig)
    assert FIELDS.keys() == own_fields(PPOConfig)
    for name, (_, default, *_) in FIELDS.items():
        shown = f"{float(default):g}" if isinstance(stock[name], float) else default
        expected = f"{stock[name]:g}" if isinstance(stock[name], float) else written(stock[name])
        assert shown == expected, name


@OF_TRL_1_12
def test_what_is_called_the_same_gone_or_of_another_default_is():
    stock, ours = defaults(PPOConfig), defaults(ZieglerPPOConfig)
    for name, (_, _, state, note) in FIELDS.items():
        if name in REFUSED or name in DERIVED:
            assert state == "gone", name
        elif stock[name] != ours[name]:
            assert state == "other default" and note.startswith(f"`{ours[name]}`"), name
        else:
            assert state == "same", name


@OF_TRL_1_12
def test_every_field_that_is_ours_has_a_row_with_its_default():
    ours = defaults(ZieglerPPOConfig)
    assert ADDED.keys() == ours.keys() - defaults(PPOConfig).keys()
    assert {name: row[1] for name, row in ADDED.items()} == {name: str(ours[name]) for name in ADDED}


def test_every_refused_field_of_transformers_is_named():
    assert {name for name in REFUSED if name in defaults(TrainingArguments)} <= set(re.findall(r"`(\w+)`", TEXT))


@OF_TRL_1_12
def test_every_argument_of_the_two_constructors_has_a_row():
    stock, ours = (set(inspect.signature(trainer).parameters) for trainer in (PPOTrainer, ZieglerPPOTrainer))
    assert ARGUMENTS.keys() == ours and stock < ours
    assert {name for name, state in ARGUMENTS.items() if state == "added"} == ours - stock


@OF_TRL_1_12
def test_every_metric_of_stock_has_a_row_and_leads_to_one_of_ours():
    assert METRICS.keys() == set(re.findall(r'metrics\["([^"]+)"\]', inspect.getsource(PPOTrainer.train)))
    ours = re.findall(r"^\| `([^`]+)` \|", (DOCS / "ppo_trainer.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for theirs, here in METRICS.items():
        assert here in {*ours, "gone"}, theirs
        assert here == theirs or theirs not in ours, theirs


def test_what_replaces_stocks_sizes_is_in_the_plan_and_every_size_is_replaced():
    replaced = {row[0]: row[1] for row in table("TRL", "here")}
    assert set(re.findall(r"trainer\.plan\.(\w+)", TEXT)) <= {
        *dir(UpdatePlan),
        *(item.name for item in fields(UpdatePlan)),
    }
    sizes = re.findall(r"\bargs\.(\w+)", " ".join(replaced))
    assert {*sizes} == {*DERIVED} - {"world_size"}


def test_every_defect_has_a_row_and_every_row_a_test():
    numbers = {f"D{number}": f"test_d{number:02}" for number in range(1, 28)}
    assert numbers == DEFECTS
    sources = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_stock_defects*.py"))
    assert set(re.findall(r"^def (test_d\d\d)_", sources, flags=re.MULTILINE)) == set(DEFECTS.values())
    assert set(re.findall(r"\bD\d+\b", TEXT)) == set(DEFECTS)
