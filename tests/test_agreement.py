"""Agreement of labellers against numbers worked out by hand, and against Fleiss' own example."""

import math

import numpy as np
import pytest

from trl_ziegler.metrics.agreement import Agreement, fleiss_kappa

FLEISS_1971 = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The published example: 10 items, 14 raters, 5 categories; P = 0.378, P_e = 0.213, kappa = 0.210."""


def as_labels(counts):
    return [[label for label, count in enumerate(row) for _ in range(count)] for row in counts]


def names(labels):
    return [[f"rater {i}" for i in range(len(item))] for item in labels]


@pytest.fixture
def metric():
    return Agreement(keep_in_memory=True)


class TestFleissKappa:
    def test_published_example(self):
        assert fleiss_kappa(np.array(FLEISS_1971)) == pytest.approx(0.210, abs=5e-4)

    def test_varying_numbers_of_raters_by_hand(self):
        # items: 2+1 of three raters, 2 of two, 1 of one (chance only). P = (1/3 + 1) / 2 = 2/3.
        # p = mean of (2/3, 1/3), (1, 0), (0, 1) = (5/9, 4/9), P_e = 41/81, kappa = (54 - 41) / (81 - 41) = 13/40.
        assert fleiss_kappa(np.array([[2, 1], [2, 0], [0, 1]])) == pytest.approx(13 / 40)

    def test_full_and_least_agreement(self):
        assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == pytest.approx(1.0)
        assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == pytest.approx(-1.0)

    def test_items_nobody_rated_change_nothing(self):
        table = np.array([[2, 1], [2, 0], [0, 1]])
        assert fleiss_kappa(np.vstack([table, [[0, 0]]])) == fleiss_kappa(table)

    def test_raters_at_random_stand_at_zero(self):
        rng = np.random.default_rng(0)
        counts = rng.multinomial(5, [0.4, 0.3, 0.2, 0.1], size=5000)
        assert fleiss_kappa(counts) == pytest.approx(0, abs=0.02)

    def test_one_category_only_leaves_it_undefined(self):
        assert math.isnan(fleiss_kappa(np.array([[2, 0], [3, 0]])))

    def test_needs_two_ratings_somewhere(self):
        with pytest.raises(ValueError, match="No item has two ratings"):
            fleiss_kappa(np.array([[1, 0], [0, 1]]))


class TestAgreement:
    def test_published_example(self, metric):
        labels = as_labels(FLEISS_1971)
        result = metric.compute(predictions=labels, references=names(labels), num_choices=5)
        assert result["kappa"] == pytest.approx(0.210, abs=5e-4)
        assert result["agreement"] == pytest.approx(0.378, abs=5e-4)
        assert (result["chance"], result["n"], result["pairs"]) == (0.2, 10, 10 * 14 * 13 // 2)

    def test_by_hand(self, metric):
        result = metric.compute(
            predictions=[[0, 0, 1], [2, 2], [3]],
            references=[["ann", "bob", "eve"], ["eve", "ann"], ["bob"]],
            num_choices=4,
        )
        assert result["agreement"] == pytest.approx((1 / 3 + 1) / 2)
        assert (result["chance"], result["n"], result["pairs"]) == (0.25, 2, 4)
        # p = mean of (2/3, 1/3, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1) = (2, 1, 3, 3) / 9, P_e = 23/81
        assert result["kappa"] == pytest.approx((54 - 23) / (81 - 23))
        each = result["per_labeller"]
        assert {name: (row["agreement"], row["n"]) for name, row in each.items()} == {
            "ann": (pytest.approx((1 / 2 + 1) / 2), 2),
            "bob": (pytest.approx(1 / 2), 1),
            "eve": (pytest.approx((0 + 1) / 2), 2),
        }

    def test_chance_follows_k_of_the_items_that_count(self, metric):
        result = metric.compute(
            predictions=[[0, 0], [1, 3], [0]], references=[["a", "b"], ["a", "c"], ["a"]], num_choices=[2, 4, 8]
        )
        assert result["chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
        assert {name: row["chance"] for name, row in result["per_labeller"].items()} == {
            "a": pytest.approx(3 / 8), "b": 0.5, "c": 0.25,
        }  # fmt: skip

    def test_agreement_and_each_against_the_rest_are_one_number_for_two_labellers(self, metric):
        rng = np.random.default_rng(0)
        labels = rng.integers(4, size=(300, 2)).tolist()
        result = metric.compute(predictions=labels, references=[["a", "b"]] * 300, num_choices=4)
        assert result["per_labeller"]["a"] == result["per_labeller"]["b"]
        assert result["per_labeller"]["a"]["agreement"] == pytest.approx(result["agreement"])
        assert result["agreement"] == pytest.approx(0.25, abs=0.08) and result["kappa"] == pytest.approx(0, abs=0.1)

    def test_the_order_of_labellers_on_an_item_does_not_matter(self, metric):
        once = metric.compute(predictions=[[0, 1, 1]], references=[["a", "b", "c"]], num_choices=2)
        assert once == metric.compute(predictions=[[1, 0, 1]], references=[["c", "a", "b"]], num_choices=2)

    @pytest.mark.parametrize(
        ("predictions", "references", "num_choices", "message"),
        [
            ([], [], 4, "`predictions` is empty"),
            ([[0], [1]], [["a"], ["a"]], 4, "No item has two ratings"),
            ([[0, 4]], [["a", "b"]], 4, r"predictions\[0\] has the label 4: it must lie in 0..3"),
            ([[0, -1]], [["a", "b"]], 4, r"has the label -1"),
            ([[0, 1]], [["a", "a"]], 4, r"references\[0\] has 'a' twice"),
            ([[0, 1]], [["a"]], 4, r"references\[0\] has 1 names for 2 labels"),
            ([[0, 1]], [["a", "b"]], [4, 4], "`num_choices` has 2 entries for 1 items"),
        ],
    )
    def test_wrong_input_is_named(self, metric, predictions, references, num_choices, message):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=references, num_choices=num_choices)
