"""PPO that collects its labels: the schedule kept, waiting, retraining, and the cord."""

import json
import threading
from itertools import pairwise

import pytest
import torch
from online_runs import SCHEDULE, RewardTraining, Simulated, Slow, begin, online_logs, trainer_of, wait_until
from ppo_parts import favour
from ppo_runs import letter_e, training_logs
from transformers import TrainerCallback
from transformers.activations import NewGELUActivation

from trl_ziegler.labelers import ImmediateLabeler, LabellingStopped, ScoreLabeler
from trl_ziegler.online import undisturbed
from trl_ziegler.online_schedule import CollectionSchedule, RoundSchedule
from trl_ziegler.tasks import Task

pytest_plugins = ("ppo_fixtures", "online_fixtures")


class TestOneRun:
    def test_labels_follow_the_schedule(self, whole):
        labels = [row["online/labels"] for row in online_logs(whole.trainer)]
        wanted = [row["online/labels_wanted"] for row in online_logs(whole.trainer)]
        assert wanted == [SCHEDULE.labels_before(n) for n in range(0, 24, 4)]
        assert labels == [SCHEDULE.requested_before(n) for n in range(0, 24, 4)]  # the labeller answers at once
        assert all(there >= needed for there, needed in zip(labels, wanted, strict=True))

    def test_rewards_are_trained_on_all_labels_when_a_point_is_reached(self, whole):
        """At the first updates whose l(n) has reached 6, 14 and 22 labels."""
        numbers = [number for number, _, _ in whole.training.calls]
        counts = [len(rows) for _, rows, _ in whole.training.calls]
        assert numbers == [0, 1, 2]
        starts = [next(n for n in range(0, 24, 4) if SCHEDULE.trainings_before(n) > j) for j in numbers]
        assert counts == [SCHEDULE.requested_before(n) for n in starts]
        for _, rows, _ in whole.training.calls:
            assert [number for number, _ in rows] == list(range(len(rows)))
        summary = json.loads((whole.folder / "online" / "collection.json").read_text())
        assert [(row["number"], row["episode"], row["labels"]) for row in summary["trainings"]] == list(
            zip(numbers, starts, counts, strict=True)
        )
        assert summary["stopped"] is None and whole.collection.stopped is None

    def test_each_update_is_scored_by_the_newest(self, whole):
        expected = [SCHEDULE.trainings_before(n) - 1 for n in range(0, 24, 4)]
        assert [row["online/reward_model"] for row in online_logs(whole.trainer)] == expected
        changes = [not torch.equal(a, b) for a, b in pairwise(whole.heads)]
        assert changes == [a != b for a, b in pairwise(expected)]

    def test_every_reward_model_is_computed_with_the_fast_layers(self, whole):
        scoring = whole.trainer.reward.functions[0]  # the third
        assert any(isinstance(module, torch.nn.GELU) for module in scoring.modules())
        assert not any(isinstance(module, NewGELUActivation) for module in scoring.modules())

    def test_each_training_starts_at_the_reference_with_a_head_of_its_own(self, whole, make_causal_lm):
        start = make_causal_lm().transformer.state_dict()
        for _, _, trunk in whole.training.calls:
            for name, weight in trunk.items():
                assert torch.equal(weight, start[name.removeprefix("transformer.")]), name
        heads = {tuple(weight[0].tolist()) for weight in whole.heads}
        assert len(heads) == 3

    def test_records_say_who_wrote_them_and_when(self, whole):
        records = whole.collection.files.records
        assert [record["number"] for record in records] == list(range(len(records)))
        assert all(a["query"] < b["query"] for a, b in pairwise(records))  # a fresh one each
        assert [sum(record["step"] <= u for record in records) for u in range(6)] == [
            SCHEDULE.requested_before(4 * u) for u in range(6)
        ]
        mixed = [record for record in records if "reference" in record["sources"]]
        assert [record["query"] % 3 for record in mixed] == [2] * len(mixed)
        assert len(mixed) == sum(record["query"] % 3 == 2 for record in records)
        labelled = whole.collection.files.labelled()
        assert all(row["label"] == max(range(4), key=letter_e([], row["completions"]).__getitem__) for row in labelled)


def test_a_policy_that_does_not_move_wins_half(folder):
    schedule = CollectionSchedule(initial=1, total=300, episodes=24, trainings=1, margin=0)
    collection = begin(folder, Simulated(), schedule=schedule, validation_interval=1)
    trainer = trainer_of(folder, collection, learning_rate=0.0)
    trainer.train()
    last = online_logs(trainer)[-1]
    assert last["online/win_rate"] == pytest.approx(0.5, abs=0.15)  # three deviations of 100 labels
    rows = collection.files.labelled()[: last["online/labels"]][-100:]
    assert last["online/win_rate"] == sum(row["sources"][row["label"]] == "policy" for row in rows) / 100


def test_a_policy_that_says_what_the_labeller_likes_wins(folder):
    schedule = CollectionSchedule(initial=1, total=60, episodes=24, trainings=1, margin=0)
    collection = begin(folder, Simulated(), schedule=schedule, validation_interval=1)
    trainer = trainer_of(folder, collection, learning_rate=0.0)
    favour(trainer.model.policy, trainer.processing_class("e")["input_ids"][0], by=5.0)
    trainer._start_unchecked = False  # the policy has left the reference
    trainer.train()
    assert online_logs(trainer)[-1]["online/win_rate"] > 0.8


class TestWords:
    def test_each_training_is_announced_with_its_labels(self, folder, capsys):
        collection = begin(folder, Simulated())
        trainer_of(folder, collection).train()
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Reward model")]
        counts = [row["labels"] for row in collection.files.summary()["trainings"]]
        assert said == [f"Reward model {number}: {count} labels" for number, count in enumerate(counts)]

    def test_a_run_from_the_start_says_that_it_goes_on_with_labels_it_found(self, folder, caplog):
        trainer_of(folder, begin(folder, Simulated())).train()
        assert "going on" not in caplog.text
        collection = begin(folder, Simulated())
        labels = len(collection.files.labels)
        trainer_of(folder, collection).train()
        assert caplog.text.count(f"going on with {labels} labels found in {folder / 'online'}") == 1

    def test_a_resumed_run_does_not_say_so(self, folder, caplog):
        trainer_of(folder, begin(folder, Simulated()), save_strategy="steps", save_steps=4).train()
        trainer_of(folder, begin(folder, Simulated())).train(resume_from_checkpoint=True)
        assert "going on" not in caplog.text

    def test_another_labeller_is_refused(self, folder):
        begin(folder, Simulated()).files.start()
        with pytest.raises(ValueError, match=r"has labels of Simulated\(\), this labeller is ImmediateLabeler\(Score"):
            begin(folder, ImmediateLabeler(ScoreLabeler(letter_e)))


class TestWaiting:
    def test_no_update_begins_without_its_labels(self, folder):
        """A labeller in another thread answers one record at a time; PPO is looked at from inside its rollouts."""
        labeler = Slow(allowed=0)
        collection = begin(folder, labeler)
        seen = []

        def answer():
            while labeler.allowed < 40:
                wait_until(lambda looks=labeler.looks: labeler.looks > looks + 1 or done.is_set())
                labeler.allowed += 1

        done = threading.Event()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            trainer = trainer_of(folder, collection, rewards=[letter_e])
            score = trainer.reward.score
            trainer.reward.score = lambda *args: (seen.append(len(collection.files.labels)), score(*args))[1]
            trainer.train()
        finally:
            done.set()
            labeler.allowed = 40
            thread.join()
        wanted = [SCHEDULE.labels_before(n) for n in range(0, 24, 4)]
        assert seen == wanted  # never fewer, and as the labeller is slow, never more

    def test_a_checkpoint_is_written_before_a_pause(self, folder):
        labeler = Slow(allowed=12)
        collection = begin(folder, labeler)
        trainer = trainer_of(folder, collection)
        looked = []

        def more():
            wait_until(lambda: labeler.looks > 30)
            looked.extend(path.name for path in (folder / "run").glob("checkpoint-*"))
            labeler.allowed = 100

        thread = threading.Thread(target=more)
        thread.start()
        trainer.train()
        thread.join()
        # 12 labels are enough for the first update (6) alone: the second needs 13.
        assert SCHEDULE.labels_before(4) == 14
        assert looked == ["checkpoint-2"]

    def test_after_the_last_update_nothing_is_waited_for(self, folder):
        class Finite(Slow):
            def collect(self):
                assert self.looks < 200, "the run waits for ever"
                return super().collect()

        schedule = CollectionSchedule(initial=6, total=60, episodes=24, trainings=1, margin=0)
        last = schedule.labels_before(20)
        assert last < 60
        collection = begin(folder, Finite(allowed=last), schedule=schedule)
        trainer = trainer_of(folder, collection)
        trainer.train()
        assert trainer.state.global_step == 12 and len(collection.files.labels) == last

    def test_a_run_that_ends_for_another_reason_does_not_wait(self, folder):
        class Ends(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = True

        class Finite(Slow):
            def collect(self):
                assert self.looks < 200, "the run waits for ever"
                return super().collect()

        trainer = trainer_of(folder, begin(folder, Finite(allowed=12)))
        trainer.add_callback(Ends())
        trainer.train()
        assert trainer.state.global_step == 2

    def test_labels_that_will_never_come_are_asked_for_again(self, folder):
        class Skipping(Simulated):
            """Has no label for every third record."""

            def collect(self):
                return [row for row in super().collect() if row["number"] % 3]

        collection = begin(folder, Skipping())
        trainer = trainer_of(folder, collection)
        trainer.train()
        assert all(row["online/labels"] >= row["online/labels_wanted"] for row in online_logs(trainer))
        assert len(collection.files.records) > len(collection.files.labels)
        assert not any(number % 3 == 0 for number in collection.files.labels)

    def test_requests_are_not_repeated_while_labels_are_open(self, folder):
        labeler = Slow(allowed=0)
        collection = begin(folder, labeler)
        thread = threading.Thread(target=trainer_of, args=(folder, collection))
        thread.start()
        wait_until(lambda: labeler.looks > 10)
        assert labeler.asked == list(range(SCHEDULE.requested_before(0)))
        labeler.allowed = 100
        thread.join()


class TestCord:
    def test_a_stop_ends_training_at_the_next_update(self, folder, caplog):
        labeler = Slow()
        collection = begin(folder, labeler)
        trainer = trainer_of(folder, collection)
        score = trainer.reward.score

        def pull(*args):
            if trainer.state.global_step == 2:  # the rollout of the second update
                labeler.stop = "the texts are broken"
            return score(*args)

        trainer.reward.score = pull
        trainer.train()
        assert trainer.state.global_step == 4
        assert collection.stopped == "the texts are broken"
        assert "Training stops after 8 episodes, as a labeller asked: the texts are broken" in caplog.text
        summary = json.loads((folder / "online" / "collection.json").read_text())
        assert summary["stopped"] == {"episode": 8, "reason": "the texts are broken"}
        assert (folder / "run" / "checkpoint-4").is_dir()

    def test_a_stop_ends_a_wait(self, folder):
        labeler = Slow(allowed=12)
        collection = begin(folder, labeler)
        trainer = trainer_of(folder, collection)

        def pull():
            wait_until(lambda: labeler.looks > 30)
            labeler.stop = "enough"

        thread = threading.Thread(target=pull)
        thread.start()
        trainer.train()
        thread.join()
        assert trainer.state.global_step == 2 and collection.stopped == "enough"
        assert len(training_logs(trainer)) == 1  # no update without its labels

    def test_a_stop_at_the_start_of_training_is_raised(self, folder):
        labeler = Slow()
        trainer = trainer_of(folder, begin(folder, labeler))
        labeler.stop = "not yet"
        with pytest.raises(LabellingStopped, match="not yet"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_a_stop_during_the_first_labels_is_raised_and_kept(self, folder):
        labeler = Slow(allowed=0)
        thread = threading.Thread(
            target=lambda: (wait_until(lambda: labeler.looks > 5), setattr(labeler, "stop", "no"))
        )
        thread.start()
        with pytest.raises(LabellingStopped, match="no"):
            trainer_of(folder, begin(folder, labeler))
        thread.join()
        summary = json.loads((folder / "online" / "collection.json").read_text())
        assert summary["stopped"] == {"episode": 0, "reason": "no"} and summary["trainings"] == []


def test_rounds_are_the_same_loop(folder):
    """Stiennon et al.: labels at the start of each round only, all by the policy as it is then."""
    training = RewardTraining(folder / "start")
    schedule = RoundSchedule(labels_per_round=8, rounds=3, episodes=24)
    collection = begin(folder, Simulated(), training, schedule=schedule)
    trainer = trainer_of(folder, collection)
    forgotten = []
    trainer.forget_reference_scores = lambda: forgotten.append(trainer.reward.functions[0])
    trainer.train()
    assert len(forgotten) == 2 and forgotten[1] is trainer.reward.functions[0]  # what evaluation kept of the former
    assert [(number, len(rows)) for number, rows, _ in training.calls] == [(0, 8), (1, 16), (2, 24)]
    assert [record["step"] for record in collection.files.records] == [0] * 8 + [2] * 8 + [4] * 8
    assert [row["online/labels"] for row in online_logs(trainer)] == [8, 8, 16, 16, 24, 24]


class TestBadSetups:
    def test_a_trainer_with_another_reward_is_refused(self, folder, train):
        collection = begin(folder, Simulated())
        trainer_of(folder, collection)
        with pytest.raises(ValueError, match="not what `begin` returned"):
            collection.attach(train(start=False))

    def test_another_task_is_refused(self, folder, make_ppo):
        collection = begin(folder, Simulated())
        trainer_of(folder, collection)
        other = make_ppo(task=Task("t", 5), reward_model=collection._reward)
        with pytest.raises(
            ValueError, match=r"The trainer's `task` is Task\(name='t', response_length=5.*the same one"
        ):
            collection.attach(other)

    def test_a_policy_in_shards_is_refused(self, folder):
        collection = begin(folder, Simulated())
        trainer = trainer_of(folder, collection)
        trainer.is_fsdp_enabled = True
        with pytest.raises(ValueError, match="FSDP is on, but one process alone samples"):
            collection.attach(trainer)

    def test_a_schedule_for_another_run_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"`episodes` of the schedule is 24.*5 updates of 4 episodes; give 20"):
            trainer_of(folder, begin(folder, Simulated()), total_episodes=20)

    def test_a_reward_model_that_is_not_normalized_is_refused(self, folder):
        class Raw(RewardTraining):
            def __call__(self, rows, number, target):
                super().__call__(rows, number, target)
                config = json.loads((target / "model" / "config.json").read_text())
                config["reward_normalization"] = None
                (target / "model" / "config.json").write_text(json.dumps(config))

        with pytest.raises(ValueError, match="not normalised; normalise it over rho"):
            trainer_of(folder, begin(folder, Simulated(), Raw(folder / "start")))

    def test_points_of_training_that_fall_together_are_warned_of(self, folder, caplog):
        schedule = CollectionSchedule(initial=6, total=30, episodes=24, trainings=20, margin=0)
        trainer_of(folder, begin(folder, Simulated(), schedule=schedule))
        assert "6 updates pass several of the 20 points of reward training at once; there will be 6" in caplog.text


def test_a_training_in_between_leaves_the_random_states():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    with undisturbed():
        torch.manual_seed(9)
    assert torch.equal(torch.rand(2), expected)
