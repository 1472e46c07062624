"""The supported TRL releases: what is refused, in which words, and that every file states the same range."""

import ast
import importlib
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from itertools import chain
from pathlib import Path

import pytest
import trl
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from trl_ziegler import _compat

ROOT = Path(__file__).parents[1]


def constraints() -> dict[str, str]:
    """Name and version of each line of `constraints.txt`."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def project() -> dict:
    """The `[project]` table of `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("found", [_compat.LOWEST_TRL, f"{_compat.LOWEST_TRL}.1", "1.12.0", "1.12.7"])
def test_releases_inside_the_range_pass(found):
    _compat.check_trl_version(found)


@pytest.mark.parametrize("found", ["0.11.4", f"{_compat.LOWEST_TRL}rc1", "1.13.0.dev0", "1.13.0rc1", "1.13.0", "2.0"])
def test_releases_outside_the_range_are_refused_in_one_sentence(found):
    with pytest.raises(ImportError) as error:
        _compat.check_trl_version(found)
    span = f">={_compat.LOWEST_TRL},<{_compat.FIRST_UNSUPPORTED_TRL}"
    expected = f'trl_ziegler works with TRL {span}, but TRL {found} is installed; run `pip install "trl{span}"`.'
    assert str(error.value) == expected


def test_the_installed_release_is_the_one_checked_by_default(monkeypatch):
    monkeypatch.setattr(_compat, "version", lambda name: {"trl": "1.13.0"}[name])
    with pytest.raises(ImportError, match=r"TRL 1\.13\.0 is installed"):
        _compat.check_trl_version()


def test_a_missing_trl_is_named_with_the_pip_command(monkeypatch):
    def not_found(name):
        raise _compat.PackageNotFoundError(name)

    monkeypatch.setattr(_compat, "version", not_found)
    with pytest.raises(ImportError, match=r'but no TRL is installed; run `pip install "trl>='):
        _compat.check_trl_version()


def test_a_release_outside_the_range_is_named_before_trl_is_imported(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.13.0")
    monkeypatch.setitem(sys.modules, "trl.import_utils", None)  # makes any import of it fail
    with pytest.raises(ImportError, match=r"TRL 1\.13\.0 is installed"):
        runpy.run_path(_compat.__file__)


def test_the_experimental_notice_is_silent_for_our_import_only(monkeypatch, recwarn):
    monkeypatch.setattr(trl, "experimental", trl.experimental)
    for name in ("trl.experimental", "trl.experimental.ppo"):
        monkeypatch.delitem(sys.modules, name)
    runpy.run_path(_compat.__file__)
    assert not recwarn.list
    monkeypatch.delitem(sys.modules, "trl.experimental")
    with pytest.warns(_compat.TRLExperimentalWarning):
        importlib.import_module("trl.experimental")


def test_the_trainer_comes_from_trl():
    assert _compat.PPOTrainer.__module__ == "trl.experimental.ppo.ppo_trainer"
    assert _compat.PPOConfig.__module__ == "trl.experimental.ppo.ppo_config"


def test_pyproject_requires_the_same_range():
    (requirement,) = [r for r in map(Requirement, project()["dependencies"]) if r.name == "trl"]
    assert requirement.specifier == SpecifierSet(_compat.TRL_RANGE)


def imported() -> set[str]:
    """The distributions that the package imports by name."""
    names: set[str] = set()
    for path in (ROOT / "trl_ziegler").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    known = packages_distributions()
    modules = names - sys.stdlib_module_names - {"trl_ziegler"}
    return {canonicalize_name(known[name][0]) for name in modules if name in known}


def test_what_is_imported_is_declared_or_comes_with_a_declared_library():
    """With any other library it may leave, and whose bounds say nothing of what is used here."""
    declared = chain(project()["dependencies"], *project()["optional-dependencies"].values())
    brought = chain.from_iterable(requires(name) for name in ("transformers", "datasets", "flask"))
    unconditional = [line for line in brought if "extra ==" not in line]
    names = {canonicalize_name(Requirement(line).name) for line in chain(declared, unconditional)}
    assert {"torch", "numpy", "pyyaml"} <= imported() <= names


def test_every_direct_dependency_is_pinned_inside_its_range():
    pinned = constraints()
    declared = chain(project()["dependencies"], *project()["optional-dependencies"].values())
    requirements = [requirement for requirement in map(Requirement, declared) if requirement.name != "trl-ziegler"]
    for requirement in requirements:  # without the extras that an extra includes
        assert requirement.specifier.contains(pinned[requirement.name]), f"{requirement} against constraints.txt"
