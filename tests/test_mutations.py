"""The mutation check of `mutations.py`: its tables fit the sources, and the tests notice every mistake in them."""

import os
import subprocess
import sys

import pytest
from mutations import FUNCTIONAL, KINDS, MUTATIONS, ROOT, TESTS_FOLDER, Mutation, mutate, read_sources, spans, verdict


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS_FOLDER)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_every_mutation_fits_its_source():
    sources = read_sources()
    for mutation in MUTATIONS:
        assert mutate(mutation, sources[mutation.file]) != sources[mutation.file]


def test_every_function_and_every_kind_of_mistake_is_covered():
    functions = {(file, name) for file, source in read_sources().items() for name in spans(source) if name}
    assert functions - {(mutation.file, mutation.function) for mutation in MUTATIONS} == set()
    assert {mutation.kind for mutation in MUTATIONS} == set(KINDS)
    assert len(set(MUTATIONS)) == len(MUTATIONS) >= 40


@pytest.mark.parametrize(
    ("function", "old", "new", "message"),
    [
        ("_mean", "present_values.min()", "pass", r"'present_values\.min\(\)' occurs 0 times in `_mean`"),
        ("_mean", "present_values", "pass", "occurs [2-9] times in `_mean` of functional.py, not once"),
        ("_median", "present_values", "pass", "functional.py has no function `_median`"),
        ("_mean", "present_values.sum() / total", "(present_values.sum() / total)", "changes no code"),
        ("_mean", "present_values.sum() / total", "present_values.sum( / total", "is no Python"),
    ],
)
def test_a_mutation_that_does_not_fit_is_refused(function, old, new, message):
    with pytest.raises(ValueError, match=message):
        mutate(Mutation("functional.py", function, "sign", old, new), read_sources()["functional.py"])


def test_a_mutation_is_applied_inside_its_function_only():
    source = read_sources()["functional.py"]
    fields = FUNCTIONAL["policy_loss"][0]
    changed = mutate(Mutation("functional.py", "policy_loss", *fields), source)
    (line,) = [new for old, new in zip(source.splitlines(), changed.splitlines(), strict=True) if old != new]
    assert line.strip() == "clip_range: float = 0.1,"
    start, end = spans(changed)["policy_loss"]
    assert line in changed[start:end]


def test_a_reason_excuses_a_survivor_and_nothing_else():
    excused = Mutation("functional.py", "_mean", "sign", "a", "b", "because")
    bare = Mutation("functional.py", "_mean", "sign", "a", "b")
    assert [verdict(excused, outcome) for outcome in ("survived", "killed", "error")] == [
        "accepted",
        "reason is void",
        "error",
    ]
    assert [verdict(bare, outcome) for outcome in ("survived", "killed", "error")] == ["survived", "killed", "error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_mutation_survives_without_a_reason():
    result = run("tests/mutations.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"\n{len(MUTATIONS)} mutations: " in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("MAX_ERROR = 0.2", "MAX_ERROR = 0.3"), "killed"),
        (("MAX_ERROR = 0.2", "MAX_ERROR = 0.3", "because"), "reason is void"),
        (("MAX_ERROR = 0.2", "MAX_ERROR = 2 / 10"), "survived"),
        (("MAX_ERROR = 0.2", "MAX_ERROR = 0.2 / 0"), "error"),
    ],
)
def test_exit_status_tells_of_every_verdict(change, word):
    mutation = Mutation("kl_control.py", "", "constant", *change)
    code = f"import mutations as m; m.MUTATIONS[:] = [m.{mutation}]; raise SystemExit(m.check(1))"
    result = run("-c", code)
    assert result.returncode == (word != "killed"), result.stdout + result.stderr
    assert result.stdout.startswith(word) and f"1 mutations: 1 {word}; " in result.stdout
