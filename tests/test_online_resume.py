"""Runs that collect labels and are killed, at whatever point, end like the uninterrupted one; and two processes."""

import json

import pytest
from launches import launched, several_processes
from online_runs import RewardTraining, Simulated, Slow, begin, online_logs, trainer_of
from ppo_runs import assert_same_weights

from trl_ziegler.labelers import LabellingStopped

pytest_plugins = "online_fixtures"

SAVING = {"save_strategy": "steps", "save_steps": 1}


def files(folder) -> dict[str, str]:
    """Names and contents of what a collection wrote, weights left out."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted((folder / "online").rglob("*"))
        if path.suffix in (".json", ".jsonl") and "model" not in path.parts
    }


class Killed(Exception):
    """Stands for SIGKILL: nothing after it is carried out."""


def kill(folder, labeler=None, before=lambda number: None, at_step=None, **settings):
    """A run that dies in its labeller, before a reward training, or in the rollout at a step."""
    training = RewardTraining(folder / "start", before)
    with pytest.raises(Killed):
        trainer = trainer_of(folder, begin(folder, labeler or Simulated(), training), **{**SAVING, **settings})
        score = trainer.reward.score

        def rollout(*args):
            if trainer.state.global_step == at_step:
                raise Killed
            return score(*args)

        trainer.reward.score = rollout
        trainer.train()


def resume(folder, **settings):
    """The trainer of the run that went on, and its labeller."""
    labeler = Simulated()
    trainer = trainer_of(folder, begin(folder, labeler), **{**SAVING, **settings})
    trainer.train(resume_from_checkpoint=True if list((folder / "run").glob("checkpoint-*")) else None)
    return trainer, labeler


def assert_equal(whole, trainer, folder):
    assert_same_weights(whole.trainer, trainer)
    assert files(folder) == files(whole.folder)
    for name in ("episode", "online/labels_wanted", "online/reward_model"):
        assert [row[name] for row in online_logs(whole.trainer)] == [row[name] for row in online_logs(trainer)]


def test_killed_in_a_rollout(folder, whole):
    kill(folder, at_step=10)
    later, labeler = resume(folder)
    assert_equal(whole, later, folder)
    assert labeler.asked == []  # all were asked and answered before the kill


@pytest.mark.slow
def test_killed_long_after_the_last_checkpoint(folder, whole):
    """What was asked and trained after it is on disk, and is not asked or trained again."""
    kill(folder, at_step=10, save_steps=4)
    later, labeler = resume(folder, save_steps=4)
    assert_equal(whole, later, folder)
    assert labeler.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_killed_in_a_reward_training(folder, whole, number):
    def before(n):
        if n == number:
            raise Killed

    kill(folder, before=before)
    later, _ = resume(folder)
    assert_equal(whole, later, folder)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["no label", "half a label"])
def test_killed_between_asking_and_labelling(folder, whole, left):
    class Dying(Simulated):
        def request(self, records):
            if any(record["number"] >= 20 for record in records):
                raise Killed
            super().request(records)

    kill(folder, Dying())
    labels = folder / "online" / "labels.jsonl"
    known = [json.loads(line)["number"] for line in labels.read_text().splitlines()]
    if left == "half a label":
        with labels.open("a") as file:
            file.write('{"number": 2')
    later, labeler = resume(folder)
    assert_equal(whole, later, folder)
    assert known + labeler.asked == list(range(len(known) + len(labeler.asked)))


@pytest.mark.slow
def test_killed_while_waiting(folder, whole):
    class Dying(Slow):
        def collect(self):
            if self.looks > 30:
                raise Killed
            return super().collect()

    kill(folder, Dying(allowed=12), save_strategy="no")
    later, labeler = resume(folder)
    assert 12 in labeler.asked and 11 not in labeler.asked
    assert_equal(whole, later, folder)


@pytest.mark.slow
def test_a_stopped_run_does_not_begin_while_the_stop_stands_and_goes_on_afterwards(folder, whole):
    labeler = Slow()
    trainer = trainer_of(folder, begin(folder, labeler))
    score = trainer.reward.score
    trainer.reward.score = lambda *args: (setattr(labeler, "stop", "wait"), score(*args))[1]
    trainer.train()
    assert trainer.state.global_step == 2
    stopped = Slow()
    stopped.stop = "wait"
    with pytest.raises(LabellingStopped, match="wait"):
        trainer_of(folder, begin(folder, stopped))
    later, _ = resume(folder)
    assert_equal(whole, later, folder)


@pytest.mark.slow
def test_two_processes_agree(tmp_path, tokenizer, make_causal_lm):
    """One asks and waits; both train, score with the same reward model, and stop together."""
    for name in ("whole", "stopped"):
        make_causal_lm().save_pretrained(tmp_path / name / "start")
        tokenizer.save_pretrained(tmp_path / name / "start")
    launched(*several_processes(), "tests/ddp_scripts/collect_online.py", str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    first, second = result["whole"]
    assert first["labels"] == second["labels"] == result["wanted"]
    assert len(first["asked"]) == result["wanted"][-1] and second["asked"] == []
    assert len(first["trained"]) == 3
    for key in ("trained", "head", "policy"):
        assert first[key] == second[key], key
    for process in result["stopped"]:
        assert process["stopped"] == "two ranks are enough"
        assert 0 < process["steps"] < 12 and process["steps"] == result["stopped"][0]["steps"]
