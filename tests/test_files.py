"""Folders of models that must be there; files and folders that are written whole or not at all."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl import ModelConfig

from trl_ziegler import _files
from trl_ziegler._files import folder_or_hub_id, written_whole
from trl_ziegler.experiments import own_data
from trl_ziegler.experiments.arguments import StyleArguments, SummaryArguments
from trl_ziegler.experiments.experiment import load_model
from trl_ziegler.experiments.own_data import check_model_options
from trl_ziegler.experiments.summaries_worlds import FileSummaries
from trl_ziegler.experiments.training import start_model
from trl_ziegler.experiments.worlds import FileWorld
from trl_ziegler.labelers import SentimentScorer
from trl_ziegler.reward_model import load_reward_model


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_moved_when_all_are_written(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("kept")
    (tmp_path / "model" / "weights").write_text("old")
    with written_whole(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
        (folder / "head").mkdir()
        (folder / "head" / "weights").write_text("w")
        assert (tmp_path / "model" / "weights").read_text() == "old"
    assert contents(tmp_path) == {"model/old": "kept", "model/weights": "new", "model/head/weights": "w"}


def test_a_failure_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "weights").write_text("old")
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path) as folder:
        (folder / "weights").write_text("half")
        raise OSError("disk full")
    assert contents(tmp_path) == {"weights": "old"}


KILLED = """
import os, signal, sys
from _files import written_whole  # alone, without the package and its imports
with written_whole(sys.argv[1]) as folder:
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(_files.__file__).parent)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    host, number = re.fullmatch(r"\.saving-(.*)-(\d+)-\w+", left.name).groups()
    kept = [f"{host}-{os.getppid()}-x", f"elsewhere-{number}-x", f"{host}-notes", "me"]
    for name in kept:
        (tmp_path / f".saving-{name}").mkdir()
    with written_whole(tmp_path) as folder:
        (folder / "weights").write_text("new")
    assert contents(tmp_path) == {"weights": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"weights", *(f".saving-{name}" for name in kept)}


def test_no_signal_is_sent_on_windows(monkeypatch):
    """Its `os.kill` ends the process whatever the signal."""
    windows = SimpleNamespace(name="nt", kill=lambda *process: pytest.fail(f"killed {process}"))
    monkeypatch.setattr(_files, "os", windows)
    assert _files.is_alive(1)


@pytest.mark.parametrize(
    "path", ["./model", "../model", "~/model", "/model", "runs/model/", "runs/one/model", ".\\model"]
)
def test_a_path_where_nothing_is_is_no_hub_id(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"The folder {path} does not exist; give the one of")):
        folder_or_hub_id(path)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "3ammar/x_y"])
def test_hub_ids_and_folders_that_are_there_pass(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").touch()
    assert folder_or_hub_id(name) == name
    assert folder_or_hub_id(tmp_path) == str(tmp_path)
    assert folder_or_hub_id("./") == "./"


def test_files_and_folders_without_a_model_are_named(tmp_path):
    (tmp_path / "weights").touch()
    with pytest.raises(FileNotFoundError, match=r"weights is a file; give the folder of a model, or a hub id\."):
        folder_or_hub_id(tmp_path / "weights")
    with pytest.raises(
        FileNotFoundError, match=r"holds no model, as it has no config.json or adapter_config.json; give"
    ):
        folder_or_hub_id(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    folder_or_hub_id(tmp_path)


@pytest.mark.parametrize(
    ("load", "argument"),
    [
        (load_reward_model, "path"),
        (load_model, "model"),
        (lambda name: FileWorld(StyleArguments(model=name, documents=name)).classifier(), "model"),
        (lambda name: FileSummaries(SummaryArguments(model=name, documents=name)).tokenizer, "model"),
        (lambda name: own_data._tokenizer(ModelConfig(name)), "model_name_or_path"),
    ],
)
def test_a_model_that_the_hub_cannot_give_is_named(load, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = f"`{argument}` is 'no-such/model': there is no such folder, and the hub has no such model or cannot"
    with pytest.raises(OSError, match=sentence) as error:
        load("no-such/model")
    assert error.value.__cause__ is not None


@pytest.mark.parametrize(
    "load",
    [
        load_reward_model,
        load_model,
        SentimentScorer,
        lambda path: check_model_options(ModelConfig(path)),
        lambda path: FileWorld(StyleArguments(model=path, documents=path)).classifier(),
        lambda path: FileWorld(StyleArguments(model=path, documents=path)).start_model(),
        lambda path: FileSummaries(SummaryArguments(model=path, documents=path)).start_model(),
        lambda path: FileSummaries(SummaryArguments(model=path, documents=path)).tokenizer,
        lambda path: start_model(Path("never"), "sft", path, None, None, None),
    ],
)
def test_everything_that_loads_a_model_says_so(load):
    with pytest.raises(FileNotFoundError, match=r"The folder \./nothing does not exist"):
        load("./nothing")
