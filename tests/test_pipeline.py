"""Stages: finished ones are skipped, half-written ones redone, nothing of the user's is lost."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trl_ziegler._files import write_jsonl
from trl_ziegler.experiments import pipeline
from trl_ziegler.experiments.pipeline import (
    MANIFEST,
    SETTINGS,
    Stage,
    read_jsonl,
    run_stages,
    write_text,
)

CARD = """\
---
model_name: {title}
---
# Model Card for {title}

tokenizer = AutoTokenizer.from_pretrained("{place}")
policy = AutoModelForCausalLM.from_pretrained("{place}")

A fine-tuned version of first-policy-2.
"""


@pytest.fixture
def ran():
    return []


@pytest.fixture
def make_stages(ran):
    def make(**settings):
        def stage(name):
            def run(folder):
                ran.append(name)
                (folder / "result.txt").write_text(f"{name} {settings.get(name, 0)}")

            return Stage(name, run, {"value": settings.get(name, 0)})

        return [stage("one"), stage("two"), stage("three")]

    return make


def test_every_stage_leaves_an_artifact_with_its_manifest(tmp_path, make_stages, ran):
    run_stages(tmp_path, make_stages())
    assert ran == ["one", "two", "three"]
    manifest = json.loads((tmp_path / "two" / MANIFEST).read_text())
    assert (manifest["stage"], manifest["settings"]) == ("two", {"value": 0})
    assert {"torch", "trl", "trl_ziegler"} <= set(manifest["versions"])
    assert not list(tmp_path.glob("*.partial"))


def test_finished_stages_are_skipped_with_a_word(tmp_path, make_stages, ran, capsys):
    run_stages(tmp_path, make_stages())
    assert "finished before" not in capsys.readouterr().out
    run_stages(tmp_path, make_stages())
    assert ran == ["one", "two", "three"]
    assert capsys.readouterr().out.splitlines() == [f"[{name}] finished before" for name in ran]


def test_changed_settings_rerun_the_stage_and_what_builds_on_it_and_keep_the_old(tmp_path, make_stages, ran):
    run_stages(tmp_path, make_stages())
    ran.clear()
    run_stages(tmp_path, make_stages(two=5))
    assert ran == ["two", "three"]
    assert (tmp_path / "two" / "result.txt").read_text() == "two 5"
    assert (tmp_path / "two.1" / "result.txt").read_text() == "two 0"


def test_a_half_written_stage_is_redone_and_may_continue_its_own_files(tmp_path, make_stages, ran):
    stages = make_stages()

    def fail(folder):
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, [stages[0], Stage("two", fail, stages[1].settings)])
    assert not (tmp_path / "two").exists()
    run_stages(tmp_path, stages)
    assert ran == ["one", "two", "three"]
    assert (tmp_path / "two" / "checkpoint").read_text() == "half"


@pytest.fixture
def half_written(tmp_path):
    """A stage that was interrupted with other settings, in which people's labels lie."""
    partial = tmp_path / "run" / "one.partial"
    partial.mkdir(parents=True)
    (partial / SETTINGS).write_text('"other"')
    (partial / "labels.jsonl").write_text("by people")
    return partial


def test_what_other_settings_left_half_written_is_not_continued_but_kept(half_written, make_stages, caplog):
    run_stages(half_written.parent, make_stages())
    assert not (half_written.parent / "one" / "labels.jsonl").exists()
    assert (half_written.parent / "one.partial.1" / "labels.jsonl").read_text() == "by people"
    assert "one.partial gives way to what the settings now ask for; it is kept as one.partial.1" in caplog.text


def test_what_was_left_half_written_is_kept_where_the_stage_is_copied(half_written, tmp_path, make_stages):
    run_stages(tmp_path / "first", make_stages())
    run_stages(half_written.parent, make_stages(), reuse_from=tmp_path / "first")
    assert (half_written.parent / "one.partial.1" / "labels.jsonl").read_text() == "by people"
    assert (half_written.parent / "one" / "result.txt").is_file()


@pytest.mark.parametrize("again", [True, False])
def test_a_copy_that_was_cut_off_is_not_continued(tmp_path, make_stages, monkeypatch, ran, again):
    run_stages(tmp_path / "first", make_stages())
    copytree = shutil.copytree

    def cut_off(source, target, **options):
        copytree(source, target, **options)
        (target / "result.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_stages(tmp_path / "second", make_stages(), reuse_from=tmp_path / "first")
    (copy,) = (tmp_path / "second").iterdir()
    (copy / "stale").touch()
    ran.clear()
    run_stages(tmp_path / "second", make_stages(), reuse_from=tmp_path / "first" if again else None)
    assert ran == ([] if again else ["one", "two", "three"])
    assert (tmp_path / "second" / "one" / "result.txt").read_text() == "one 0"
    assert not (tmp_path / "second" / "one" / "stale").exists()


def test_a_stage_that_failed_before_it_made_anything_leaves_nothing_behind(tmp_path, make_stages):
    def fail(folder):
        raise ValueError("wrong settings")

    for settings in ({"value": 1}, {"value": 2}):
        with pytest.raises(ValueError, match="wrong settings"):
            run_stages(tmp_path, [Stage("one", fail, settings)])
    assert [path.name for path in tmp_path.iterdir()] == ["one.partial"]


def test_the_card_of_a_model_names_the_place_it_is_at(tmp_path, make_stages):
    def write_model(folder):
        (folder / "model").mkdir()
        place = tmp_path / "first" / "policy" / "model"
        (folder / "model" / "README.md").write_text(CARD.format(title="first-policy", place=place))

    def stages(value):
        return [Stage("policy", write_model, {"value": value})]

    def card(folder):
        return (folder / "model" / "README.md").read_text()

    first, second = tmp_path / "first" / "policy", tmp_path / "second" / "policy"
    run_stages(first.parent, stages(0))
    run_stages(second.parent, stages(0), reuse_from=first.parent)
    assert card(first) == CARD.format(title="first-policy", place=first / "model")
    assert card(second) == CARD.format(title="second-policy", place=second / "model")
    run_stages(second.parent, stages(1))
    aside = second.with_name("policy.1")
    assert card(aside) == CARD.format(title="second-policy.1", place=aside / "model")


def test_a_selection_runs_alone_once_its_foundations_stand(tmp_path, make_stages, ran):
    with pytest.raises(ValueError, match="Stage 'one' is not complete with these settings, and 'two' builds on it"):
        run_stages(tmp_path, make_stages(), only="two")
    run_stages(tmp_path, make_stages(), only="one,two")
    assert ran == ["one", "two"]
    with pytest.raises(ValueError, match="`stages` names 'four'; the stages of this recipe are one, two, three"):
        run_stages(tmp_path, make_stages(), only="four")


def test_a_stage_that_another_run_has_finished_is_copied_as_far_as_the_settings_agree(tmp_path, make_stages, ran):
    run_stages(tmp_path / "a" / "deep" / "first", make_stages())
    ran.clear()
    run_stages(tmp_path / "b" / "second", make_stages(two=5), reuse_from=tmp_path)
    assert ran == ["two", "three"]  # "three" has the same settings, but another "two" below it
    first, second = tmp_path / "a" / "deep" / "first", tmp_path / "b" / "second"
    assert (second / "one" / MANIFEST).read_text() == (first / "one" / MANIFEST).read_text()
    assert (second / "one" / "result.txt").read_text() == "one 0"
    ran.clear()
    run_stages(second, make_stages(), reuse_from=tmp_path)
    assert ran == []
    assert (second / "two" / "result.txt").read_text() == "two 0"
    assert (second / "two.1" / "result.txt").read_text() == "two 5"
    assert not list(tmp_path.rglob("*.partial"))


def test_only_finished_stages_are_copied_and_only_where_asked(tmp_path, make_stages, ran):
    run_stages(tmp_path / "first", make_stages())
    (tmp_path / "first" / "one").rename(tmp_path / "first" / "one.partial")
    ran.clear()
    run_stages(tmp_path / "second", make_stages(), reuse_from=tmp_path / "first", only="one,two")
    assert ran == ["one"]  # "two" rests on equal settings, whoever made "one"
    run_stages(tmp_path / "third", make_stages())
    assert ran == ["one", "one", "two", "three"]


def test_no_process_changes_what_another_has_yet_to_look_at(tmp_path, make_stages, monkeypatch):
    run_stages(tmp_path / "first", make_stages())
    barrier, moved, own = threading.Barrier(2, timeout=10), threading.Event(), threading.local()
    look, move = pipeline.is_complete, os.replace

    class State:
        is_main_process = property(lambda self: own.main)
        wait_for_everyone = staticmethod(barrier.wait)
        print = staticmethod(lambda text: None)

    def look_late(folder, fingerprint):
        if not own.main:
            moved.wait(0.5)
        return look(folder, fingerprint)

    def process(main):
        own.main = main
        run_stages(tmp_path / "second", make_stages(), reuse_from=tmp_path / "first")

    monkeypatch.setattr(pipeline, "PartialState", State)
    monkeypatch.setattr(pipeline, "is_complete", look_late)
    monkeypatch.setattr(os, "replace", lambda *paths: (move(*paths), moved.set()))
    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(process, main) for main in (True, False)]:
            ended.result()
    assert (tmp_path / "second" / "three" / "result.txt").is_file()


def test_files_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": "ü"}])
    assert read_jsonl(path) == [{"a": 1}, {"a": "ü"}]
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_text(path, "half")
    assert read_jsonl(path) == [{"a": 1}, {"a": "ü"}]
