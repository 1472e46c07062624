"""The release: a tag that is not the version is refused; workflows, citation and package agree with each other."""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from trl_ziegler import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = "# Changelog\n\n## 1.2.3\n\n- x\n\n## 1.2.3rc1\n"


@pytest.fixture
def problem():
    return runpy.run_path(str(ROOT / ".github" / "check_tag.py"))["problem"]


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", ["1.2.3", "1.2.3rc1"])
def test_a_tag_that_is_the_version_is_released(problem, version):
    assert problem(f"v{version}", version, CHANGELOG) is None


@pytest.mark.parametrize(
    ("tag", "version", "sentence"),
    [
        ("v1.2.4", "1.2.3", "The tag is v1.2.4, but trl_ziegler/_version.py says 1.2.3; tag v1.2.3"),
        ("1.2.3", "1.2.3", "The tag is 1.2.3, but"),
        ("v1.2.3.dev0", "1.2.3.dev0", "1.2.3.dev0 is not a released version"),
        ("v1.2.5", "1.2.5", "CHANGELOG.md has no section 1.2.5"),
    ],
)
def test_any_other_tag_is_refused(problem, tag, version, sentence):
    assert problem(tag, version, CHANGELOG).startswith(sentence)


def test_the_check_reads_the_package_and_fails_the_build():
    done = subprocess.run(
        [sys.executable, ".github/check_tag.py", "v0.0.0"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and f"says {__version__};" in done.stderr


def test_the_release_checks_its_tag_before_anything_is_built():
    jobs = workflow("release")["jobs"]
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands[0].startswith("python .github/check_tag.py")
    assert jobs["publish"]["needs"] == "build"


def test_every_supported_python_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = workflow("test")["jobs"]["default"]["strategy"]["matrix"]["python"]
    minors = [f"3.{minor}" for minor in range(30)]
    assert tested == list(SpecifierSet(project["requires-python"]).filter(minors))
    for minor in tested:
        assert f"Programming Language :: Python :: {minor}" in project["classifiers"]


def test_the_named_systems_are_the_tested_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    machines = {job["runs-on"] for job in workflow("test")["jobs"].values()}
    named = [name for name in project["classifiers"] if name.startswith("Operating System")]
    assert machines == {"ubuntu-latest"} and named == ["Operating System :: POSIX :: Linux"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_ask_for_no_more_rights_than_they_need(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] for name, job in content["jobs"].items() if name != "publish")


def test_a_push_to_main_does_not_cancel_the_check_of_the_one_before():
    """The job `whole` takes up to two hours; pull requests are checked anew at every push."""
    cancel = workflow("test")["concurrency"]["cancel-in-progress"]
    assert cancel == "${{ github.event_name == 'pull_request' }}"


def test_package_and_citation_name_the_same_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["authors"] == citation["authors"]


def test_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == __version__ and citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["references"][0]["authors"][0]["family-names"] == "Ziegler"
