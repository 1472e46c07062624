"""l(n), the trainings it triggers, and what is refused."""

from dataclasses import replace
from itertools import pairwise

import pytest

from trl_ziegler.online_schedule import CollectionSchedule, RoundSchedule

PAPER = CollectionSchedule(initial=500, total=5000, episodes=2_000_000)


class TestPaper:
    def test_labels_begin_at_n0_and_end_at_n(self):
        assert PAPER.labels_before(0) == 500
        assert PAPER.labels_before(2_000_000) == 5000
        assert PAPER.labels_before(3_000_000) == 5000

    def test_values_by_hand(self):
        """Half of the episodes: 500 + 4500 (1 - 1/4) = 3875; a tenth: 500 + 4500 · 0.19 = 1355."""
        assert PAPER.labels_before(1_000_000) == 3875
        assert PAPER.labels_before(200_000) == 1355

    def test_a_part_of_a_label_counts_as_one(self):
        """Before episode 1 of 10: 4 + 6 (1 - 0.81) = 5.14, so PPO needs 6."""
        assert CollectionSchedule(initial=4, total=10, episodes=10).labels_before(1) == 6

    def test_it_rises_ever_more_slowly(self):
        values = [PAPER.labels_before(n) for n in range(0, 2_000_001, 50_000)]
        steps = [b - a for a, b in pairwise(values)]
        assert all(step > 0 for step in steps)
        assert steps == sorted(steps, reverse=True)

    def test_twenty_trainings_at_evenly_spaced_labels(self):
        points = PAPER.training_points
        assert len(points) == 20
        assert points == tuple(500 + 225 * j for j in range(20))
        reached = [PAPER.trainings_before(n) for n in range(0, 2_000_000, 1024)]
        assert sorted(set(reached)) == list(range(1, 21)) and reached == sorted(reached)

    def test_a_training_comes_where_its_labels_must_be_there(self):
        first = next(n for n in range(2_000_000) if PAPER.labels_before(n) >= 725)
        assert (PAPER.trainings_before(first - 1), PAPER.trainings_before(first)) == (1, 2)

    def test_requests_run_ahead_by_the_margin_up_to_the_last_label(self):
        assert PAPER.requested_before(0) == 1500
        assert PAPER.requested_before(1_000_000) == 4875
        assert PAPER.requested_before(1_900_000) == 5000

    def test_equal_initial_and_total_are_offline_collection(self):
        offline = replace(PAPER, initial=5000)
        assert offline.training_points == (5000,)
        assert {offline.trainings_before(n) for n in (0, 10**6, 2 * 10**6)} == {1}
        assert offline.requested_before(0) == 5000


class TestRounds:
    rounds = RoundSchedule(labels_per_round=100, rounds=4, episodes=1000)

    def test_each_round_begins_with_its_labels_and_a_training(self):
        assert [self.rounds.labels_before(n) for n in (0, 249, 250, 500, 999, 1000)] == [100, 100, 200, 300, 400, 400]
        assert self.rounds.training_points == (100, 200, 300, 400)
        assert [self.rounds.trainings_before(n) for n in (0, 249, 250, 750)] == [1, 1, 2, 4]

    def test_nothing_is_asked_ahead(self):
        assert [self.rounds.requested_before(n) for n in (0, 249, 250)] == [100, 100, 200]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("initial", 0, "`initial` is 0; a CollectionSchedule needs at least 1"),
        ("total", 499, "`total` is 499; a CollectionSchedule needs at least 500"),
        ("episodes", 0, "`episodes` is 0"),
        ("trainings", 0, "`trainings` is 0"),
        ("margin", -1, "`margin` is -1; a CollectionSchedule needs at least 0"),
    ],
)
def test_bad_schedules_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **{field: value})


def test_more_rounds_than_episodes_are_refused():
    with pytest.raises(ValueError, match="`episodes` is 3; a RoundSchedule needs at least 4"):
        RoundSchedule(labels_per_round=1, rounds=4, episodes=3)
