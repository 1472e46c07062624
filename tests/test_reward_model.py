"""The reward head, padding, the form on disk, adapters, scoring and normalisation."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from trl_ziegler.reward_mixin import RewardHead, exclusive_positions
from trl_ziegler.reward_model import (
    as_reward_model,
    forget_normalization,
    is_normalized,
    load_reward_model,
    normalize_reward_model,
    restore_reward_head,
    reward_head,
    save_reward_head,
    score_token_ids,
)

KINDS = ("gpt2", "llama", "qwen2")
QUERIES = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
RESPONSES = [[11, 12], [13, 14, 15, 16, 17], [18], [19, 20, 21]]


@pytest.fixture
def make_reward_model(make_classifier):
    """`make(kind)`: a reward model whose four head parameters all differ from their start."""

    def make(kind="gpt2"):
        model = as_reward_model(make_classifier(kind), fresh_head=True, seed=5).eval()
        with torch.no_grad():
            reward_head(model).bias.fill_(0.3)
        reward_head(model).set_affine(2.5, -0.7)
        return model

    return make


@pytest.fixture
def make_adapter(make_causal_lm, tmp_path):
    """`make()`: a LoRA adapter of a reward model, with non-zero weights, over a causal model in `tmp_path`."""

    def make(**config):
        make_causal_lm().save_pretrained(tmp_path / "base")
        base = load_reward_model(tmp_path / "base", seed=5)
        config = {"target_modules": ["c_attn"], "modules_to_save": ["score"], "fan_in_fan_out": True, **config}
        model = as_reward_model(get_peft_model(base, LoraConfig(**config)))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.5, generator=generator)
        reward_head(model).set_affine(2.5, -0.7)
        return model

    return make


def forward(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits


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


class TestDisk:
    @pytest.mark.parametrize("kind", KINDS)
    def test_ours_loads_exactly_and_plain_loading_differs_by_one_constant(self, make_reward_model, tmp_path, kind):
        model = make_reward_model(kind)
        scores = score_token_ids(model, QUERIES, RESPONSES)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(score_token_ids(load_reward_model(tmp_path), QUERIES, RESPONSES), scores)

        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        with torch.no_grad():
            pairs = zip(QUERIES, RESPONSES, strict=True)
            plain_scores = torch.cat([plain(torch.tensor([q + r])).logits[0] for q, r in pairs])
        constant = 2.5 * 0.3 - 0.7
        torch.testing.assert_close(scores - plain_scores, torch.full((4,), constant), atol=1e-5, rtol=0)
        assert plain.config.reward_bias == pytest.approx(constant)
        torch.testing.assert_close(score_token_ids(plain, QUERIES, RESPONSES), scores)  # converted, it is ours again

    def test_the_file_holds_the_folded_weight_and_no_other_head_key(self, make_reward_model, tmp_path):
        model = make_reward_model()
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        assert [key for key in state if "score" in key] == ["score.weight"]
        torch.testing.assert_close(state["score.weight"], 2.5 * model.score.weight.data)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2ForSequenceClassification"]

    def test_saving_does_not_change_the_model(self, make_reward_model, tmp_path):
        model = make_reward_model()
        before = copy.deepcopy(model.state_dict())
        model.save_pretrained(tmp_path)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_second_save_loads_as_the_first(self, make_reward_model, tmp_path):
        make_reward_model().save_pretrained(tmp_path / "one")
        load_reward_model(tmp_path / "one").save_pretrained(tmp_path / "two")
        ours = [score_token_ids(load_reward_model(tmp_path / name), QUERIES, RESPONSES) for name in ("one", "two")]
        assert torch.equal(*ours)

    def test_from_pretrained_of_the_converted_class_restores_the_offset(self, make_reward_model, tmp_path):
        model = make_reward_model()
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(
            score_token_ids(again, QUERIES, RESPONSES), score_token_ids(model, QUERIES, RESPONSES)
        )

    def test_causal_model_gets_a_fresh_seeded_head_and_keeps_its_trunk(self, make_causal_lm, tmp_path):
        source = make_causal_lm()
        source.save_pretrained(tmp_path)
        first, again, other = (load_reward_model(tmp_path, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.score.weight, again.score.weight)
        assert not torch.equal(first.score.weight, other.score.weight)
        assert torch.equal(first.transformer.h[1].mlp.c_fc.weight, source.transformer.h[1].mlp.c_fc.weight)
        assert (first.score.gain.item(), first.score.offset.item(), first.score.bias.item()) == (1.0, 0.0, 0.0)
        assert first.dtype == torch.float32

    def test_one_label_classifier_keeps_its_head(self, make_classifier, tmp_path):
        source = make_classifier("qwen2")
        source.save_pretrained(tmp_path)
        assert torch.equal(load_reward_model(tmp_path).score.weight, source.score.weight)

    def test_unfolded_head_is_restored_bit_for_bit(self, make_reward_model, make_classifier, tmp_path):
        model = make_reward_model()
        save_reward_head(model, tmp_path)
        other = as_reward_model(make_classifier())
        restore_reward_head(other, tmp_path)
        assert all(
            torch.equal(other.score.state_dict()[key], value) for key, value in model.score.state_dict().items()
        )

    def test_missing_head_file_is_named(self, make_reward_model, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"has no reward_head\.safetensors"):
            restore_reward_head(make_reward_model(), tmp_path)


class TestRefusedModels:
    def test_remote_code(self, tmp_path):
        with pytest.raises(ValueError, match="`trust_remote_code=True` is not supported"):
            load_reward_model(tmp_path, trust_remote_code=True)

    def test_several_labels(self, make_classifier, tmp_path):
        with pytest.raises(ValueError, match="`num_labels` is 3"):
            as_reward_model(make_classifier(num_labels=3))
        make_classifier(num_labels=3).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="`num_labels` is 3"):
            load_reward_model(tmp_path)

    def test_another_head(self, make_classifier):
        model = make_classifier()
        model.score = torch.nn.Sequential(model.score)
        with pytest.raises(ValueError, match="`score` of this GPT2ForSequenceClassification is a Sequential"):
            as_reward_model(model)

    def test_architecture_without_classifier(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        with pytest.raises(ValueError, match="is a 'vit', which transformers has no sequence classifier for"):
            load_reward_model(tmp_path)

    def test_adapter_that_does_not_train_the_head(self, make_adapter):
        with pytest.raises(ValueError, match="neither trains nor saves the reward head"):
            make_adapter(modules_to_save=None)

    def test_adapter_on_the_head(self, make_classifier):
        config = LoraConfig(target_modules=["c_attn", "score"], fan_in_fan_out=True)
        with pytest.warns(UserWarning, match="fan_in_fan_out"), pytest.raises(ValueError, match="leave `score` out"):
            as_reward_model(get_peft_model(make_classifier(), config))

    def test_prompt_learning(self, make_classifier):
        config = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=2)
        with pytest.raises(ValueError, match="virtual tokens move the slot"):
            as_reward_model(get_peft_model(make_classifier(), config))


class TestAdapter:
    def test_saved_adapter_loads_exactly(self, make_adapter, tmp_path):
        model = make_adapter()
        with torch.no_grad():
            reward_head(model).bias.fill_(0.3)
        scores = score_token_ids(model, QUERIES, RESPONSES)
        model.save_pretrained(tmp_path / "adapter")
        loaded = load_reward_model(tmp_path / "adapter")
        torch.testing.assert_close(score_token_ids(loaded, QUERIES, RESPONSES), scores)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert reward_head(load_reward_model(tmp_path / "adapter", is_trainable=True)).weight.requires_grad

    def test_plain_peft_loading_differs_by_one_constant(self, make_adapter, tmp_path):
        model = make_adapter()
        scores = score_token_ids(model, QUERIES, RESPONSES)
        model.save_pretrained(tmp_path / "adapter")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
        plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        with torch.no_grad():
            pairs = zip(QUERIES, RESPONSES, strict=True)
            plain_scores = torch.cat([plain(input_ids=torch.tensor([q + r])).logits[0] for q, r in pairs])
        torch.testing.assert_close(scores - plain_scores, torch.full((4,), -0.7), atol=1e-5, rtol=0)

    def test_normalisation_record_travels_with_the_adapter(self, make_adapter, tmp_path):
        model = make_adapter()
        record = normalize_reward_model(model, QUERIES, RESPONSES)
        model.save_pretrained(tmp_path / "adapter")
        loaded = load_reward_model(tmp_path / "adapter")
        assert is_normalized(loaded) and loaded.config.reward_normalization == asdict(record)

    def test_peft_model_made_before_conversion(self, make_classifier):
        plain = make_classifier().eval()
        ids = torch.tensor([[3, 1, 4]])
        before = plain(ids).logits
        config = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["c_attn"], fan_in_fan_out=True)
        model = as_reward_model(get_peft_model(plain, config)).eval()
        torch.testing.assert_close(model(input_ids=ids).logits, before)
        assert all(parameter.requires_grad for parameter in reward_head(model).parameters())
        assert not any(p.requires_grad for p in model.get_base_model().score.original_module.parameters())

    def test_adapter_without_a_named_base(self, make_adapter, tmp_path):
        make_adapter().save_pretrained(tmp_path / "adapter")
        path = tmp_path / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
        with pytest.raises(ValueError, match="does not name its base model"):
            load_reward_model(tmp_path / "adapter")


class TestScoring:
    def test_order_and_batch_split_do_not_matter(self, make_reward_model):
        model = make_reward_model()
        pairs = zip(QUERIES, RESPONSES, strict=True)
        alone = torch.cat([forward(model, [q + r], [[1] * len(q + r)])[0] for q, r in pairs])
        for batch_size in (1, 3, 64):
            scores = score_token_ids(model, QUERIES, RESPONSES, batch_size=batch_size)
            torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)

    def test_dropout_is_off_and_the_mode_is_restored(self, make_reward_model):
        model = make_reward_model().train()  # GPT-2's default has dropout 0.1
        first, second = (score_token_ids(model, QUERIES, RESPONSES) for _ in range(2))
        assert torch.equal(first, second) and not first.requires_grad
        assert model.training

    def test_plain_classifier_is_converted(self, make_classifier):
        model = make_classifier()
        assert score_token_ids(model, QUERIES, RESPONSES).shape == (4,)
        assert isinstance(model.score, RewardHead)

    def test_bad_input(self, make_reward_model):
        with pytest.raises(ValueError, match="`response_ids` has 3 entries for 4 queries"):
            score_token_ids(make_reward_model(), QUERIES, RESPONSES[:3])
        with pytest.raises(ValueError, match="Entry 1 has neither"):
            score_token_ids(make_reward_model(), [[1], []], [[2], []])


class TestNormalization:
    def test_by_hand(self, make_reward_model):
        """Raw scores (1, 3): mean 2, population std 1, so gain 1 and offset -2; the gain of 2.5 before is lost."""
        model = make_reward_model()
        reward_head(model).set_affine(1.0, 0.0)
        raw = score_token_ids(model, QUERIES[:2], RESPONSES[:2])
        with torch.no_grad():  # an affine map of the raw head that sends its two scores to 1 and 3
            scale = 2 / (raw[1] - raw[0])
            reward_head(model).weight.mul_(scale)
            reward_head(model).bias.copy_(reward_head(model).bias * scale + 1 - scale * raw[0])
        reward_head(model).set_affine(2.5, -0.7)
        record = normalize_reward_model(model, QUERIES[:2], RESPONSES[:2])
        assert (record.measured_mean, record.measured_std) == pytest.approx((2.0, 1.0), abs=1e-5)
        assert reward_head(model).gain.item() == pytest.approx(1.0, abs=1e-5)  # sample std would give 0.7071
        assert reward_head(model).offset.item() == pytest.approx(-2.0, abs=1e-5)
        scores = score_token_ids(model, QUERIES[:2], RESPONSES[:2])
        torch.testing.assert_close(scores, torch.tensor([-1.0, 1.0]), atol=1e-5, rtol=0)

    def test_target_mean_and_std_are_reached(self, make_reward_model):
        model = make_reward_model()
        record = normalize_reward_model(model, QUERIES, RESPONSES, target_mean=3.0, target_std=0.5)
        scores = score_token_ids(model, QUERIES, RESPONSES)
        assert scores.mean().item() == pytest.approx(3.0, abs=1e-5)
        assert scores.std(correction=0).item() == pytest.approx(0.5, abs=1e-5)
        assert (record.target_mean, record.target_std, record.n_samples) == (3.0, 0.5, 4)

    def test_shift_only_keeps_the_scale_of_the_raw_head(self, make_reward_model):
        model = make_reward_model()
        reward_head(model).set_affine(1.0, 0.0)
        raw = score_token_ids(model, QUERIES, RESPONSES)
        normalize_reward_model(model, QUERIES, RESPONSES, target_std=None, method="reference_summaries")
        torch.testing.assert_close(score_token_ids(model, QUERIES, RESPONSES), raw - raw.mean(), atol=1e-5, rtol=0)
        assert model.config.reward_normalization["method"] == "reference_summaries"

    @pytest.mark.parametrize("change", ["scaled head", "other gain and offset"])
    def test_result_depends_on_the_raw_head_up_to_scale(self, make_reward_model, change):
        model, changed = make_reward_model(), make_reward_model()
        with torch.no_grad():
            if change == "scaled head":
                changed.score.weight.mul_(3)
                changed.score.bias.mul_(3)
            else:
                changed.score.set_affine(0.1, 9.0)
        for each in (model, changed):
            normalize_reward_model(each, QUERIES, RESPONSES)
        torch.testing.assert_close(*(score_token_ids(each, QUERIES, RESPONSES) for each in (model, changed)))

    def test_record_travels_with_the_checkpoint_until_forgotten(self, make_reward_model, tmp_path):
        model = make_reward_model()
        assert not is_normalized(model)
        record = normalize_reward_model(model, QUERIES, RESPONSES)
        model.save_pretrained(tmp_path)
        loaded = load_reward_model(tmp_path)
        assert is_normalized(loaded) and loaded.config.reward_normalization == asdict(record)
        torch.testing.assert_close(
            score_token_ids(loaded, QUERIES, RESPONSES), score_token_ids(model, QUERIES, RESPONSES)
        )
        forget_normalization(loaded)
        assert not is_normalized(loaded)

    def test_fresh_head_forgets_normalisation(self, make_reward_model):
        model = make_reward_model()
        normalize_reward_model(model, QUERIES, RESPONSES)
        as_reward_model(model, fresh_head=True, seed=1)
        assert not is_normalized(model) and reward_head(model).gain.item() == 1.0

    def test_samples_that_score_alike_are_refused(self, make_reward_model):
        with pytest.raises(ValueError, match="at least two different values"):
            normalize_reward_model(make_reward_model(), [[1], [1]], [[2], [2]])

    def test_no_samples_are_refused(self, make_reward_model):
        with pytest.raises(ValueError, match="`query_ids` is empty"):
            normalize_reward_model(make_reward_model(), [], [])
