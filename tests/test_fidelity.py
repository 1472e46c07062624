"""`docs/fidelity.md` names what exists: every rule once, its files, functions and tests; and why a test is missing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "fidelity.md"
COUNTS = {"A": 15, "B": 5, "C": 6, "D": 12, "E": 14, "H": 7, "K": 4}
RULES = [f"{letter}{i + 1}" for letter, count in COUNTS.items() for i in range(count)] + ["J"]
PLACE = re.compile(r"`([\w/]+\.py):([\w.]+)`")
TEST = re.compile(r"`(test_\w+\.py)::([\w:]+)`")
NOTHING = "–"


def rows(page: str) -> dict[str, list[str]]:
    """The cells of each row that begins with a rule's id; `AssertionError` where an id comes twice."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if re.fullmatch(r"[A-Z]\d*", cells[0]):
            assert cells[0] not in found, f"{cells[0]} has two rows"
            found[cells[0]] = cells
    return found


@cache
def names_in(path: Path) -> set[str]:
    """Functions, classes, their methods and assigned names of a file, as `name` and `Class.name`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= own_names(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner}" for part in node.body for inner in own_names(part)}
    return names


def own_names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def problems(rule: str, cells: list[str]) -> list[str]:
    """What is wrong with one row, each as a short sentence."""
    if len(cells) != 5:
        return [f"{rule} has {len(cells)} cells"]
    _, text, where, tests, sources = cells
    places, named = PLACE.findall(where), TEST.findall(tests)
    found = [f"{rule} says nothing"] if not text else []
    for pattern, cell in ((PLACE, where), (TEST, tests)):
        if cell != NOTHING and pattern.sub("", cell).strip(", "):
            found.append(f"{rule} has something else than names in {cell!r}")
    for folder, pairs in (("trl_ziegler", places), ("tests", named)):
        for file, name in pairs:
            path = ROOT / folder / file
            if not path.is_file():
                found.append(f"{rule} names {file}, which does not exist")
            elif name.replace("::", ".") not in names_in(path):
                found.append(f"{rule} names {name}, which {file} does not have")
    if not named and not re.match(r"(not yet|left out): \w", sources):
        found.append(f"{rule} has no test and no reason")
    if named and not places:
        found.append(f"{rule} has a test but no place")
    return found


def test_every_rule_has_one_row():
    assert sorted(rows(PAGE.read_text(encoding="utf-8"))) == sorted(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_what_a_row_names_exists(rule):
    assert problems(rule, rows(PAGE.read_text(encoding="utf-8"))[rule]) == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| A1 | x | `tasks.py:cut` | `test_tasks.py::test_list` | y |", "cut, which tasks.py does not have"),
        ("| A1 | x | `task.py:cut` | – | not yet: y |", "names task.py, which does not exist"),
        ("| A1 | x | `tasks.py:Task.bin` | – | not yet: y |", "Task.bin, which tasks.py does not have"),
        ("| A1 | x | `functional.py:gae` | `test_functional_ppo.py::TestGAE::test_x` | y |", "names TestGAE::test_x"),
        ("| A1 | x | `functional.py:gae` | – | y |", "no test and no reason"),
        ("| A1 | x | – | `test_fidelity.py::test_every_rule_has_one_row` | y |", "a test but no place"),
        ("| A1 | x | somewhere | – | not yet: y |", "something else than names"),
        ("| A1 | x | – | – |", "has 4 cells"),
    ],
)
def test_a_wrong_row_is_named(row, problem):
    assert any(problem in each for each in problems("A1", rows(row)["A1"]))


def test_a_second_row_of_a_rule_is_refused():
    with pytest.raises(AssertionError, match="B1 has two rows"):
        rows("| B1 | x |\n| B1 | y |")
