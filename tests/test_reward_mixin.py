"""The reward head, and rewards that do not depend on padding."""

import pytest
import torch
from reward_records import forward
from transformers import LlamaForSequenceClassification

from trl_ziegler.reward_mixin import RewardHead, exclusive_positions
from trl_ziegler.reward_model import (
    as_reward_model,
    reward_head,
)

pytest_plugins = "reward_fixtures"
KINDS = ("gpt2", "llama", "qwen2")


class TestHead:
    def test_initial_weights_have_the_papers_scale(self):
        torch.manual_seed(0)
        assert RewardHead(1280).weight.std().item() == pytest.approx(0.02794, rel=0.1)  # 0.02 would fail
        assert RewardHead(768).initial_std == pytest.approx(0.03606, abs=5e-6)

    def test_fresh_head_depends_on_its_seed_alone(self, make_classifier):
        first = as_reward_model(make_classifier(seed=1), fresh_head=True, seed=3)
        again = as_reward_model(make_classifier(seed=2), fresh_head=True, seed=3)
        other = as_reward_model(make_classifier(seed=1), fresh_head=True, seed=4)
        assert torch.equal(reward_head(first).weight, reward_head(again).weight)
        assert not torch.equal(reward_head(first).weight, reward_head(other).weight)
        assert reward_head(first).weight.std().item() == pytest.approx(33**-0.5, rel=0.35)

    def test_reward_is_gain_times_raw_plus_offset(self):
        head = RewardHead(2)
        head.load_state_dict(
            {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5]), "gain": torch.tensor([3.0]),
             "offset": torch.tensor([-1.0])}
        )  # fmt: skip
        assert head(torch.tensor([10.0, 100.0])).item() == 3 * (10 + 200 + 0.5) - 1

    def test_head_computes_in_float32_under_autocast(self):
        head = RewardHead(2)
        head.set_affine(1.0, 1000.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reward = head(torch.zeros(2, dtype=torch.bfloat16) + 0.01)
        assert reward.dtype == torch.float32
        assert reward.item() == pytest.approx(1000 + 0.01 * head.weight.sum().item(), abs=1e-4)

    def test_conversion_keeps_a_trained_head_and_the_class_name(self, make_classifier):
        model = make_classifier("llama")
        weight, ids = model.score.weight.clone(), torch.tensor([[3, 1, 4]])
        before = model.eval()(ids).logits
        converted = as_reward_model(model)
        assert converted is model and isinstance(model, LlamaForSequenceClassification)
        assert type(model).__name__ == "LlamaForSequenceClassification"
        assert torch.equal(model.score.weight, weight)
        torch.testing.assert_close(model(ids).logits, before)
        assert type(as_reward_model(model)) is type(converted)

    def test_all_four_parameters_are_trained(self, make_reward_model):
        assert {n for n, p in reward_head(make_reward_model()).named_parameters() if p.requires_grad} == {
            "weight", "bias", "gain", "offset",
        }  # fmt: skip


class TestPadding:
    def test_position_ids_count_present_tokens_before(self):
        assert exclusive_positions(torch.tensor([[1, 0, 0, 1, 1]])).tolist() == [[0, 1, 1, 1, 2]]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "mask", [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]], ids=["right", "left", "middle"]
    )
    def test_padding_does_not_change_the_reward(self, make_reward_model, kind, mask):
        model = make_reward_model(kind)
        bare = forward(model, [[7, 8, 9]], [[1, 1, 1]])
        for filler in (0, 9, 5):
            tokens = iter([7, 8, 9])
            padded = forward(model, [[next(tokens) if m else filler for m in mask]], [mask])
            torch.testing.assert_close(padded, bare, atol=1e-5, rtol=0)

    def test_filler_outside_the_vocabulary_never_reaches_the_embedding(self, make_reward_model):
        ids, mask = [[7, 8, 50259, 50259]], [[1, 1, 0, 0]]
        torch.testing.assert_close(
            forward(make_reward_model(), ids, mask), forward(make_reward_model(), [[7, 8]], [[1, 1]])
        )

    def test_reward_is_read_at_the_last_present_token(self, make_reward_model):
        model = make_reward_model()
        base = forward(model, [[7, 8, 9, 4]], [[1, 1, 1, 0]])
        assert torch.equal(forward(model, [[7, 8, 9, 6]], [[1, 1, 1, 0]]), base)
        assert not torch.allclose(forward(model, [[7, 8, 6, 4]], [[1, 1, 1, 0]]), base)

    def test_without_a_mask_every_token_is_present(self, make_reward_model):
        model, ids = make_reward_model(), torch.tensor([[7, 8, 9]])
        assert torch.equal(model(ids).logits, model(ids, attention_mask=torch.ones_like(ids)).logits)

    def test_rewards_at_given_positions(self, make_reward_model):
        model, ids = make_reward_model(), torch.tensor([[7, 8, 9, 3]])
        logits = model(ids, reward_positions=torch.tensor([[1, 3]])).logits
        torch.testing.assert_close(logits[0, 0], model(ids[:, :2]).logits[0, 0])
        torch.testing.assert_close(logits[0, 1], model(ids).logits[0, 0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_candidates_behind_one_prefix(self, make_reward_model, kind):
        """A 4-D mask with explicit positions: [7, 8 | 9 | 3, 4] holds the sequences 7 8 9 and 7 8 3 4."""
        model = make_reward_model(kind)
        sees = torch.tensor(
            [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]], dtype=torch.bool
        )
        logits = model(
            torch.tensor([[7, 8, 9, 3, 4]]),
            attention_mask=torch.zeros(1, 1, 5, 5).masked_fill(~sees, torch.finfo(torch.float32).min),
            position_ids=torch.tensor([[0, 1, 2, 2, 3]]),
            reward_positions=torch.tensor([[2, 4]]),
        ).logits
        alone = [model(torch.tensor([ids])).logits[0] for ids in ([7, 8, 9], [7, 8, 3, 4])]
        torch.testing.assert_close(logits[0], torch.cat(alone), atol=1e-5, rtol=0)

    def test_a_4d_mask_needs_positions(self, make_reward_model):
        with pytest.raises(ValueError, match="give `position_ids` and `reward_positions`"):
            make_reward_model()(torch.tensor([[7]]), attention_mask=torch.ones(1, 1, 1, 1))

    def test_labels_are_refused(self, make_reward_model):
        with pytest.raises(ValueError, match="`labels` was given to a reward model"):
            make_reward_model()(torch.tensor([[7]]), labels=torch.tensor([0]))
