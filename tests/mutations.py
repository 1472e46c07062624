"""Mutation check: is every formula of the method held by a test that turns red when the formula is made wrong?

    OMP_NUM_THREADS=1 python tests/mutations.py

Each mutation is one small mistake in one function. A forked child is given the changed source in place of the file's,
nothing on disk changes, and runs the tests of that file. A survivor is a missing test, or a change that cannot matter,
whose reason then stands beside it. torch, transformers and TRL are imported once, before the forks.

The tables are in `mutations_of_*.py`: for each function (`""` is the whole file) the kind of a mistake, the text it
replaces, which occurs once in the function, the text it puts there, and last the reason if it may survive.
"""

import argparse
import ast
import functools
import gc
import importlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from multiprocessing.connection import wait
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from mutations_of_functional import CHUNKED_SOFTMAX, FUNCTIONAL
from mutations_of_rewards import KL_CONTROL, REWARD_WRAPPER

TESTS_FOLDER = Path(__file__).parent
ROOT = TESTS_FOLDER.parent
PACKAGE = "trl_ziegler"
KINDS = ("sign", "index", "mask", "constant", "reduction", "dropped call", "comparison")
TABLES = {
    "functional.py": FUNCTIONAL,
    "chunked_softmax.py": CHUNKED_SOFTMAX,
    "kl_control.py": KL_CONTROL,
    "reward_wrapper.py": REWARD_WRAPPER,
}
TESTS = {  # the tests that must notice a mutation of the file: its own, not those of what is built on it
    "functional.py": ("test_functional.py", "test_functional_ppo.py"),
    "chunked_softmax.py": ("test_functional.py",),
    "kl_control.py": ("test_kl_control.py",),
    "reward_wrapper.py": ("test_reward_wrapper.py",),
}
OUTCOMES = {0: "survived", 1: "killed"}  # pytest's exit statuses; any other is an error of the check itself
NOT_LOADED = 100  # ours: the tests ran on something else than the given source


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in one function of `trl_ziegler/<file>`; `accepted` is the reason why it may survive."""

    file: str
    function: str
    kind: str
    old: str
    new: str
    accepted: str = ""


MUTATIONS = [
    Mutation(file, function, *fields)
    for file, table in TABLES.items()
    for function, rows in table.items()
    for fields in rows
]


class Run(NamedTuple):
    """What the tests of a file said of a source: killed, survived or error, and pytest's output."""

    outcome: str
    output: str


class GivenSource(SourceFileLoader):
    """Finds and loads one module of the package from a string in place of its file."""

    def __init__(self, file: str, source: str) -> None:
        super().__init__(f"{PACKAGE}.{Path(file).stem}", str(ROOT / PACKAGE / file))
        self.source = source

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")

    def was_loaded(self) -> bool:
        return self.name in sys.modules and sys.modules[self.name].__loader__ is self


def read_sources() -> dict[str, str]:
    """The source of every file that is mutated."""
    return {file: (ROOT / PACKAGE / file).read_text(encoding="utf-8") for file in TABLES}


@functools.cache
def spans(source: str) -> dict[str, tuple[int, int]]:
    """Character range of every function and method (`Class.method`), and of the whole source under `""`."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {"": (0, len(source))}
    for outer in ast.parse(source).body:
        prefix = f"{outer.name}." if isinstance(outer, ast.ClassDef) else ""
        for node in outer.body if prefix else [outer]:
            if isinstance(node, ast.FunctionDef):
                found[prefix + node.name] = (starts[node.lineno - 1], starts[node.end_lineno])
    return found


def position(mutation: Mutation, source: str) -> int:
    """Where the old text begins. Raises `ValueError` where the function is not there or does not hold it once."""
    if mutation.function not in spans(source):
        raise ValueError(f"{mutation.file} has no function `{mutation.function}`; bring its mutations up to date.")
    start, end = spans(source)[mutation.function]
    count = source.count(mutation.old, start, end)
    if count != 1:
        raise ValueError(
            f"{mutation.old!r} occurs {count} times in `{mutation.function}` of {mutation.file}, not once; "
            "bring its mutations up to date."
        )
    return source.index(mutation.old, start, end)


def mutate(mutation: Mutation, source: str) -> str:
    """The changed source. Raises `ValueError` where the change does not apply, does not compile or changes no code."""
    found, (start, end) = position(mutation, source), spans(source)[mutation.function]
    changed = source[start:found] + mutation.new + source[found + len(mutation.old) : end]
    before, after = (textwrap.dedent(text) for text in (source[start:end], changed))
    try:
        unchanged = ast.dump(ast.parse(before)) == ast.dump(ast.parse(after))
    except SyntaxError as error:
        raise ValueError(
            f"{mutation.new!r} in `{mutation.function}` of {mutation.file} is no Python: {error}"
        ) from error
    if unchanged:
        raise ValueError(f"{mutation.new!r} in `{mutation.function}` of {mutation.file} changes no code.")
    return source[:start] + changed + source[end:]


def import_third_party() -> None:
    """Import once, before the forks, what takes seconds; never the package itself."""
    sys.dont_write_bytecode = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of imports; the tests turn warnings of what they run into errors
        for module in ("conftest", "pytest", "datasets", "evaluate", "peft", "trl.experimental.ppo"):
            importlib.import_module(module)
        importlib.import_module("transformers.models.gpt2.modeling_gpt2")
    if PACKAGE in sys.modules:
        raise RuntimeError(f"`{PACKAGE}` was imported before the forks, so that no mutation of it would take effect.")
    gc.freeze()  # or the collections at the end of each child's tests walk and copy all that was imported


def run_tests(file: str, source: str, output: str) -> None:
    """In a child: run the tests of the file on the given source, and exit with pytest's status."""
    import pytest

    with open(output, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    given = GivenSource(file, source)
    sys.meta_path.insert(0, given)
    tests = [str(TESTS_FOLDER / name) for name in TESTS[file]]
    status = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--assert=plain", *tests])
    sys.exit(int(status) if given.was_loaded() else NOT_LOADED)


def run_all(work: Mapping[Hashable, tuple[str, str]], jobs: int) -> Iterator[tuple[Hashable, Run]]:
    """Run the tests on each `(file, source)`, at most `jobs` at once; yields key and result as they come."""
    fork, waiting, running = multiprocessing.get_context("fork"), list(work), {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                key = waiting.pop(0)
                output = Path(folder, str(len(waiting)))
                process = fork.Process(target=run_tests, args=(*work[key], str(output)))
                process.start()
                running[process.sentinel] = key, process, output
            for sentinel in wait(list(running)):
                key, process, output = running.pop(sentinel)
                process.join()
                yield key, Run(OUTCOMES.get(process.exitcode, "error"), output.read_text(errors="replace"))


def verdict(mutation: Mutation, outcome: str) -> str:
    """The outcome in the light of the table: a reason excuses a survivor, and is void beside a killed mutation."""
    if mutation.accepted and outcome != "error":
        return {"survived": "accepted", "killed": "reason is void"}[outcome]
    return outcome


def row(mutation: Mutation, source: str, word: str) -> str:
    """One line of the table that is printed."""
    where = f"{mutation.file}:{source.count(chr(10), 0, position(mutation, source)) + 1}"
    reason = f"  ({mutation.accepted})" if mutation.accepted else ""
    return f"{word:<14}  {mutation.kind:<12}  {where:<21}  {mutation.old.strip()}  ->  {mutation.new.strip()}{reason}"


def check(jobs: int) -> int:
    """Run every mutation, print table and summary, and return the exit status: 0 if all are killed or accepted."""
    started, sources = time.monotonic(), read_sources()
    work = {mutation: (mutation.file, mutate(mutation, sources[mutation.file])) for mutation in MUTATIONS}
    import_third_party()
    for file, run in run_all({file: (file, source) for file, source in sources.items()}, jobs):
        if run.outcome != "survived":
            print(f"The tests of {file} do not pass as it stands:\n{run.output}")
            return 1
    counts: Counter[str] = Counter()
    for mutation, run in run_all(work, jobs):
        word = verdict(mutation, run.outcome)
        counts[word] += 1
        print(row(mutation, sources[mutation.file], word), flush=True)
        if word == "error":
            print(run.output)
    words = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    print(f"{len(MUTATIONS)} mutations: {words}; {time.monotonic() - started:.0f} s")
    return 0 if set(counts) <= {"killed", "accepted"} else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the tests notice small mistakes in the formulas.")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="children at once (default: 1)")
    return check(parser.parse_args().jobs)


if __name__ == "__main__":
    sys.exit(main())
