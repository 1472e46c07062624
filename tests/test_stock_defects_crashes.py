"""Defects of the PPO trainer of TRL 1.12.0 that this one does not have: crashes, hangs, late and unclear errors.

What two processes need runs in `ddp_scripts/train_and_save.py`.
"""

import json

import pytest
import torch
from datasets import Dataset
from launches import launched, several_processes
from peft import PeftModel
from ppo_parts import prompts
from ppo_runs import PROMPTS, assert_same_weights
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.reward_model import as_reward_model
from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


@pytest.fixture
def run_two(make_causal_lm, tokenizer, tmp_path):
    """`run_two(kind)` trains in two processes; returns the folder and what the script found."""

    def run(kind: str):
        make_causal_lm().save_pretrained(tmp_path / "policy")
        tokenizer.save_pretrained(tmp_path / "policy")
        launched(*several_processes(), "tests/ddp_scripts/train_and_save.py", str(tmp_path), kind)
        return tmp_path, json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.mark.slow
def test_d13_two_processes_save_what_they_have_trained(run_two):
    folder, result = run_two("full")
    assert result["weights_of_ranks"][0] == result["weights_of_ranks"][1]
    assert result["resumed"] == result["weights_of_ranks"][0]
    for name in ("saved", "run/checkpoint-4"):
        loaded = ActorCritic.from_pretrained(folder / name)
        total = sum(float(weight.detach().double().sum()) for weight in loaded.parameters())
        assert total == result["weights_of_ranks"][0]
        AutoModelForCausalLM.from_pretrained(folder / name)
    assert (folder / "saved" / "tokenizer.json").is_file()
    assert result["advantages"] == pytest.approx(0, abs=1e-5)  # D11: the mean over both ranks
    assert abs(result["advantages_of_rank"]) > 1e-3
    assert result["valid_share"] == pytest.approx(result["valid_share_counted"])  # D22: of both ranks


@pytest.mark.slow
def test_d14_lora_without_ref_model_trains_in_two_processes(run_two):
    folder, result = run_two("lora")
    assert result["weights_of_ranks"][0] == result["weights_of_ranks"][1]
    assert result["resumed"] == result["weights_of_ranks"][0]
    assert result["kl"][0] == pytest.approx(0, abs=1e-5)
    assert abs(result["kl"][1]) > 1e-6
    base = AutoModelForCausalLM.from_pretrained(folder / "policy")
    adapter = PeftModel.from_pretrained(base, folder / "saved")
    assert any(weight.any() for name, weight in adapter.named_parameters() if "lora_B" in name)


def test_d15_a_set_smaller_than_a_batch_is_refused(make_ppo):
    with pytest.raises(ValueError, match="`train_dataset` has 7 prompts, fewer than the 8 of one update"):
        make_ppo(train_dataset=prompts(7), per_device_train_batch_size=8)


def test_d16_a_pad_added_without_resizing_the_model_changes_nothing(
    make_ppo, make_causal_lm, make_classifier, tokenizer
):
    def run():
        judge = as_reward_model(make_classifier(), fresh_head=True)
        trainer = make_ppo(
            model=make_causal_lm(), reward_model=judge, value_model=make_classifier(seed=3), task=None,
            response_length=6, stop_token="eos", local_rollout_forward_batch_size=3, max_steps=2,
        )  # fmt: skip
        trainer.train()
        return trainer

    plain = run()
    models = make_causal_lm(), make_classifier(), make_classifier(seed=3)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == models[0].config.vocab_size  # one past the embedding
    judge = as_reward_model(models[1], fresh_head=True)
    padded = make_ppo(
        model=models[0], reward_model=judge, value_model=models[2], task=None, response_length=6, stop_token="eos",
        local_rollout_forward_batch_size=3, max_steps=2,
    )  # fmt: skip
    padded.train()
    assert_same_weights(plain, padded)


def texts(*rows: str) -> Dataset:
    return Dataset.from_dict({"prompt": [*rows, *PROMPTS * 3]})


LATE = {
    "a prompt too long for the context": (
        {"train_dataset": texts(" the" * 251)},
        r"Row 0 of `train_dataset` has 251 tokens; .* at most 250 fit",
    ),
    "an empty prompt": ({"train_dataset": texts("")}, "Row 0 of `train_dataset` has an empty prompt"),
    "a set without prompts": (
        {"train_dataset": Dataset.from_dict({"text": PROMPTS})},
        r"`train_dataset` has the columns \['text'\]; give a `prompt`",
    ),
    "an evaluation without a set": ({"eval_strategy": "steps"}, "didn't pass an `eval_dataset`"),
    "a negative kl_coef": ({"kl_coef": -1.0}, r"`kl_coef` is -1\.0; give a number of at least 0: a negative"),
    "temperature zero": ({"temperature": 0.0}, r"`temperature` is 0\.0; give a number above 0"),
    "no episodes": ({"total_episodes": 0}, "`total_episodes` is 0; give at least 1"),
    "a stop id outside the vocabulary": (
        {"task": None, "stop_token_id": 343},
        "The stop token id 343 is outside the tokenizer's 343 ids",
    ),
}


@pytest.mark.parametrize("arguments", LATE)
def test_d17_late_errors_and_silent_nonsense_are_refused_with_one_sentence(make_ppo, arguments):
    given, message = LATE[arguments]
    with pytest.raises(ValueError, match=message) as error:
        make_ppo(**given)
    assert "\n" not in str(error.value).strip()


def test_d17_models_that_do_not_fit_are_refused_with_one_sentence(make_ppo, make_classifier, tokenizer):
    with pytest.raises(ValueError, match="with 2 labels cannot serve as reward or value model"):
        make_ppo(reward_model=make_classifier(num_labels=2))
    with pytest.raises(ValueError, match="with 2 labels cannot serve as reward or value model"):
        make_ppo(value_model=make_classifier(num_labels=2))
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, num_labels=1,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"BertForSequenceClassification .* cannot serve .*, or wrap it in a call"):
        make_ppo(reward_model=bert)
    other = make_classifier()
    other.resize_token_embeddings(400)
    with pytest.raises(ValueError, match="has 400 ids, the policy 343; they read the same ids"):
        make_ppo(reward_model=other)
    assert make_ppo(value_model=None).model.value_head is not None


def test_d17_a_stop_token_that_the_policy_cannot_say_is_refused(make_ppo, make_causal_lm, tokenizer):
    model = make_causal_lm()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match="stop token id 343 is outside the policy's 343 ids"):
        make_ppo(model=model, task=None, stop_token_id=343)


def test_d17_a_prompt_with_a_token_the_policy_does_not_know_is_refused(make_ppo, make_causal_lm, tokenizer):
    model = make_causal_lm()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=r"Row 0 of `train_dataset` has the id 343, .* the policy's 343"):
        make_ppo(model=model, train_dataset=texts(" the [PAD] cat"))


def test_d17_the_side_on_which_the_tokenizer_pads_does_not_matter(make_ppo, tokenizer):
    runs = []
    for side in ("left", "right"):  # on the right, the stock trainer put responses after the pads
        tokenizer.padding_side = side
        trainer = make_ppo(max_steps=2)
        trainer.train()
        runs.append(trainer)
    assert_same_weights(*runs)


def test_d17_responses_follow_their_prompt_without_a_gap(make_ppo, make_causal_lm):
    """Left padding, positions and mask: each row equals the same row alone."""
    trainer = make_ppo(task=Task("t", 4))
    rollout = trainer._collect(trainer.data_collator(list(trainer.train_dataset)[:4]))
    for i, query in enumerate(trainer.train_dataset["input_ids"][:4]):
        ids = torch.tensor([[*query, *rollout.responses[i].tolist()]])
        with torch.no_grad():
            logits = make_causal_lm().eval()(ids).logits[0, len(query) - 1 : -1] / trainer.task.task.temperature
        alone = logits.log_softmax(-1).gather(1, rollout.responses[i][:, None]).squeeze(1)
        torch.testing.assert_close(rollout.logprobs[i], alone, atol=1e-5, rtol=1e-5)
