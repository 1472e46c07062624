"""Losses of the four kinds of judgement, by hand."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from trl_ziegler.preference_losses import best_candidates, pairwise_loss, preference_loss, preferred_pairs

MASK = torch.tensor([[True, True, True], [True, True, False]])


class TestLosses:
    def test_a_label_tells_k_minus_one_pairs_and_a_ranking_all(self):
        pairs = preferred_pairs({"labels": torch.tensor([1, 0])}, MASK)
        assert pairs.nonzero().tolist() == [[0, 1, 0], [0, 1, 2], [1, 0, 1]]
        pairs = preferred_pairs({"rankings": torch.tensor([[2, 0, 1], [0, 1, 0]])}, MASK)  # the last 0 fills up
        assert pairs.nonzero().tolist() == [[0, 0, 1], [0, 2, 0], [0, 2, 1], [1, 0, 1]]

    def test_tied_scores_give_no_pair(self):
        pairs = preferred_pairs({"scores": torch.tensor([[2.0, 2.0, 1.0], [0.0, 1.0, 9.0]])}, MASK)
        assert pairs.nonzero().tolist() == [[0, 0, 2], [0, 1, 2], [1, 1, 0]]

    def test_best_candidates_of_every_judgement(self):
        assert best_candidates({"labels": torch.tensor([1, 0])}, MASK).nonzero().tolist() == [[0, 1], [1, 0]]
        assert best_candidates({"rankings": torch.tensor([[2, 0, 1], [1, 0, 0]])}, MASK).nonzero().tolist() == [
            [0, 2],
            [1, 1],
        ]
        scores = torch.tensor([[2.0, 2.0, 1.0], [-1.0, -2.0, 0.0]])
        assert best_candidates({"scores": scores}, MASK).nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]

    def test_pairwise_by_hand_weighs_records_alike(self):
        rewards = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 50.0]])
        pairs = preferred_pairs({"labels": torch.tensor([1, 0])}, MASK)
        expected = ((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2 + math.log1p(math.exp(-2))) / 2
        assert pairwise_loss(rewards, pairs).item() == pytest.approx(expected)

    def test_pairwise_on_a_full_ranking_is_the_ranking_loss(self):
        rewards = torch.tensor([[0.3, -1.0, 2.0], [0.7, 0.1, 9.0]])
        judgement = {"rankings": torch.tensor([[2, 0, 1], [1, 0, 0]])}
        losses = [preference_loss(loss_type, rewards, judgement, MASK) for loss_type in ("ranking", "pairwise")]
        torch.testing.assert_close(*losses)
        untied = {"scores": torch.tensor([[2.0, 1.0, 3.0], [0.0, 1.0, 0.0]])}
        torch.testing.assert_close(preference_loss("ranking", rewards, untied, MASK), losses[0])

    def test_margin_is_taken_off_the_labelled_reward(self):
        rewards, mask = torch.tensor([[1.0, 0.2], [0.5, 2.0]]), torch.ones(2, 2, dtype=torch.bool)
        judgement = {"labels": torch.tensor([0, 1]), "margin": torch.tensor([0.3, 1.0])}
        expected = -logsigmoid(torch.tensor([1.0 - 0.2 - 0.3, 2.0 - 0.5 - 1.0])).mean()
        for loss_type in ("best_of_k", "pairwise"):
            torch.testing.assert_close(preference_loss(loss_type, rewards, judgement, mask), expected)

    def test_scalar_is_the_squared_error_of_present_candidates(self):
        rewards = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 50.0]])
        judgement = {"scores": torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]])}
        assert preference_loss("scalar", rewards, judgement, MASK).item() == pytest.approx((1 + 0 + 4 + 0 + 4) / 5)
