"""The form on disk, refused models, adapters, scoring and normalisation."""

import copy
import json
import logging
from dataclasses import asdict

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from reward_records import QUERIES, RESPONSES, forward
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from trl_ziegler.reward_mixin import RewardHead
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

pytest_plugins = "reward_fixtures"
KINDS = ("gpt2", "llama", "qwen2")


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

    def test_a_fresh_head_is_no_news_but_other_weights_that_do_not_fit_are(
        self, make_causal_lm, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        source = make_causal_lm()
        source.save_pretrained(tmp_path)
        load_reward_model(tmp_path)
        assert "LOAD REPORT" not in caplog.text
        left_out = "transformer.h.1.mlp.c_fc.bias"
        source.save_pretrained(tmp_path, state_dict={k: v for k, v in source.state_dict().items() if k != left_out})
        load_reward_model(tmp_path)
        assert "LOAD REPORT" in caplog.text and left_out in caplog.text
        caplog.clear()
        with pytest.raises(RuntimeError, match="look at the above report"):
            load_reward_model(tmp_path, n_inner=64)
        assert "LOAD REPORT" in caplog.text and "MISMATCH" in caplog.text

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

    def test_record_and_labels_origin_travel_with_an_adapter_on_the_hub(self, make_adapter, tmp_path):
        model = make_adapter()
        record = normalize_reward_model(model, QUERIES, RESPONSES)
        model.config.label_origin = "two authors"
        repo = tmp_path / "hub" / "models--someone--adapter"  # as the hub's client keeps what it has downloaded
        model.save_pretrained(repo / "snapshots" / "1")
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("1")
        there = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
        loaded = load_reward_model("someone/adapter", **there)
        assert loaded.config.reward_normalization == asdict(record) and loaded.config.label_origin == "two authors"
        (repo / "snapshots" / "1" / "config.json").unlink()  # an adapter that PEFT alone has saved
        assert not is_normalized(load_reward_model("someone/adapter", **there))

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
