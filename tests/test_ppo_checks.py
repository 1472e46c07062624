"""What is refused before work starts, and what the first update asserts."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate.logging import MultiProcessAdapter
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from trl_ziegler.kl_control import FixedKLController
from trl_ziegler.ppo_checks import (
    build_task,
    check_padding,
    check_setup,
    check_sign_of_reward,
    check_start,
    context_limit,
    list_of,
    reading_policys_ids,
    tokenizers_of_rewards,
    warn_of_invalid,
    warn_of_whole_value_model,
)
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.reward_wrapper import KLEntropyReward, Scored
from trl_ziegler.rollout import Rollout
from trl_ziegler.tasks import BOOKS, Task

pytest_plugins = "ppo_fixtures"


@pytest.fixture
def args(tmp_path):
    return ZieglerPPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)


def length_of(prompts, completions):
    return [float(len(text)) for text in completions]


def check(args, policy, ref=None, value=None, rewards=(length_of,), own=None, data=None):
    data = Dataset.from_dict({"prompt": ["x"]}) if data is None else data
    check_setup(policy, ref, value, list(rewards), own or [None] * len(rewards), args, data)


def test_task_from_the_config_is_the_eos_regime(args, tokenizer):
    args.stop_token, args.missing_eos_penalty, args.response_length = "eos", 1.0, 12
    task = build_task(args, None, tokenizer)
    assert (task.regime, task.response_length, task.temperature) == ("eos", 12, 0.7)
    assert (task.truncate_token, task.truncate_after, task.penalty, task.penalty_rule) == ("eos", 0, -1.0, "add")
    args.stop_token, args.stop_token_id, args.missing_eos_penalty = None, 0, None
    assert build_task(args, None, tokenizer).truncate_token == 0


def test_an_option_given_twice_is_refused(args, tokenizer):
    assert build_task(args, BOOKS, tokenizer) is BOOKS
    args.temperature = 0.9
    with pytest.raises(ValueError, match="`temperature` is set in the config and by the task 'books'; give it once"):
        build_task(args, BOOKS, tokenizer)


def test_a_sound_setup_passes(args, make_causal_lm, make_classifier):
    policy = make_causal_lm()
    check(args, policy, copy.deepcopy(policy), make_classifier(), [make_classifier(), length_of])


def test_one_object_in_two_roles_is_refused(args, make_causal_lm, make_classifier):
    policy, judge = make_causal_lm(), make_classifier()
    with pytest.raises(ValueError, match="`ref_model` is the same object as `model`"):
        check(args, policy, policy)
    with pytest.raises(ValueError, match="same object as another model"):
        check(args, policy, None, judge, [judge])


def test_missing_and_impossible_rewards_are_refused(args, make_causal_lm, make_classifier):
    policy = make_causal_lm()
    with pytest.raises(ValueError, match="`reward_model` is missing"):
        check(args, policy, rewards=[None])
    with pytest.raises(ValueError, match="`reward_model` holds 'judge'; give a model"):
        check(args, policy, rewards=["judge"])
    with pytest.raises(ValueError, match="with 2 labels cannot serve as reward or value model"):
        check(args, policy, rewards=[make_classifier(num_labels=2)])
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel .* cannot serve as reward or value model"):
        check(args, policy, rewards=[make_causal_lm()])


def test_other_vocabularies_are_refused_unless_the_model_has_its_tokenizer(
    args, make_causal_lm, make_classifier, tokenizer
):
    policy, judge = make_causal_lm(), make_classifier()
    judge.config.vocab_size += 1
    with pytest.raises(ValueError, match=r"ids, the policy .* needs `reward_processing_classes`"):
        check(args, policy, rewards=[judge])
    check(args, policy, rewards=[judge], own=[tokenizer])


def test_streams_without_a_length_are_refused(args, make_causal_lm):
    stream = Dataset.from_dict({"prompt": ["x"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"`train_dataset` is a stream, whose length nobody knows"):
        check(args, make_causal_lm(), data=stream)


def test_a_trained_adapter_without_reference_is_refused(args, make_causal_lm):
    lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    policy = get_peft_model(make_causal_lm(), lora)
    check(args, policy)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    with pytest.raises(ValueError, match="`model` has a trained adapter and `ref_model` is None"):
        check(args, policy)
    check(args, policy, ref=make_causal_lm())


def test_a_reference_adapter_that_nobody_would_use_is_refused(args, make_causal_lm):
    args.ref_adapter_name = "reference"
    with pytest.raises(ValueError, match="`ref_adapter_name` is 'reference', but `model` has no adapters"):
        check(args, make_causal_lm())
    policy = get_peft_model(make_causal_lm(), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))
    check(args, policy)
    with pytest.raises(ValueError, match="but `ref_model` is given, too; leave it out"):
        check(args, policy, ref=make_causal_lm())


def test_a_value_network_can_only_be_made_of_a_model_that_reads_the_policys_ids(
    args, make_causal_lm, make_classifier, tokenizer
):
    args.value_init = "reward"
    check(args, make_causal_lm(), rewards=[make_classifier(), length_of])
    with pytest.raises(ValueError, match="`value_init` is 'reward', but the first reward is the function length_of"):
        check(args, make_causal_lm(), rewards=[length_of])
    with pytest.raises(ValueError, match="`value_init` is 'reward' and `value_model` is given"):
        check(args, make_causal_lm(), None, make_classifier(), [make_classifier()])
    with pytest.raises(ValueError, match="the first reward model has a tokenizer of its own"):
        check(args, make_causal_lm(), rewards=[make_classifier()], own=[tokenizer])


def test_the_shortest_context_of_all_readers_counts(make_causal_lm, make_classifier, tokenizer):
    policy, judge, endless = make_causal_lm(), make_classifier(), make_classifier()
    judge.config.max_position_embeddings = 40
    assert context_limit([policy, None]) == 256
    assert context_limit([policy, judge]) == 40
    endless.config = SimpleNamespace(get_text_config=SimpleNamespace)
    assert context_limit([endless]) > 10**9
    assert reading_policys_ids([judge, length_of, policy], [None, None, tokenizer]) == [judge]


def test_a_whole_value_network_beside_an_adapter_is_warned_of(make_causal_lm, make_classifier, caplog):
    lora = get_peft_model(make_causal_lm(), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))
    frozen = make_classifier()
    frozen.transformer.requires_grad_(False)
    for policy, value_model in ((lora, None), (lora, frozen), (make_causal_lm(), make_classifier())):
        warn_of_whole_value_model(policy, value_model)
    assert not caplog.records
    warn_of_whole_value_model(lora, make_classifier())
    assert "`value_model` trains all of its" in caplog.text


def test_tokenizers_of_rewards_are_as_many(tokenizer):
    assert tokenizers_of_rewards(None, 2) == [None, None]
    assert tokenizers_of_rewards(tokenizer, 1) == [tokenizer]
    with pytest.raises(ValueError, match="`reward_processing_classes` has 1 entries for 2 reward functions"):
        tokenizers_of_rewards([tokenizer], 2)


def test_contexts_padded_on_the_right_are_refused():
    check_padding(torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="`data_collator` pads on the right"):
        check_padding(torch.tensor([[1, 1], [1, 0]]))


def test_list_of():
    assert list_of(length_of) == [length_of]
    assert list_of([1, 2]) == [1, 2]


class WrongSign(KLEntropyReward):
    def __init__(self, *args, score=1.0, kl=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.signs = score, kl

    def shape(self, scored, logprobs, ref_logprobs):
        score, kl = self.signs
        shaped = super().shape(scored._replace(scores=score * scored.scores), kl * logprobs, kl * ref_logprobs)
        return shaped


@pytest.mark.parametrize(
    ("signs", "message"), [({"score": -1.0}, "higher score gives a lower"), ({"kl": -1.0}, "larger log")]
)
def test_a_flipped_sign_of_the_reward_stops_the_run(tokenizer, signs, message):
    def build(**options):
        return WrongSign(
            [length_of], [1.0], Task("t", 3).bind(tokenizer), tokenizer, FixedKLController(0.1), **options
        )

    scored = Scored(torch.ones(2), torch.ones(2), torch.ones(2, 1), torch.tensor([3, 3]), torch.ones(2).bool())
    logprobs = -torch.ones(2, 3)
    check_sign_of_reward(build().shape, scored, logprobs, logprobs)
    with pytest.raises(RuntimeError, match=message):
        check_sign_of_reward(build(**signs).shape, scored, logprobs, logprobs)


def first_rollout(values=0.0) -> Rollout:
    ids = torch.zeros(2, 3, dtype=torch.long)
    zeros = torch.zeros(2, 3)
    return Rollout(ids, ids, ids, torch.ones(2, 3).bool(), zeros, zeros + values, zeros)


def test_start_asserts_ratio_kl_and_value():
    same = torch.zeros(2, 3)
    check_start(first_rollout(), same, 0.0, zero_head=True)
    check_start(first_rollout(values=2.0), same, None, zero_head=False)
    one_token = torch.zeros(2, 3)
    one_token[1, 2] = 2e-3
    with pytest.raises(RuntimeError, match=r"ratio is off by 2\.0e-03 \(allowed 1e-03\)"):
        check_start(first_rollout(), one_token, 0.0, zero_head=True)
    with pytest.raises(RuntimeError, match=r"KL\(pi, rho\) is 2\.00e-03 nats"):
        check_start(first_rollout(), same, 2e-3, zero_head=True)
    with pytest.raises(RuntimeError, match="zero-initialised value head gives values other than 0"):
        check_start(first_rollout(values=1e-3), same, 0.0, zero_head=True)
    with pytest.raises(RuntimeError, match="ratio is off by nan"):
        check_start(first_rollout(), same * float("nan"), 0.0, zero_head=True)


def test_rounding_is_told_from_another_model_by_the_mean():
    one_token = torch.zeros(2, 3)
    one_token[1, 2] = 0.24
    check_start(first_rollout(), one_token, 1e-2, zero_head=True, exact=False)
    with pytest.raises(RuntimeError, match=r"off by 5\.2e-02 in the mean \(allowed 5e-02\).*float32 weights"):
        check_start(first_rollout(), one_token * 1.3, 0.0, zero_head=True, exact=False)


def test_a_stop_token_that_never_comes_is_warned_of(caplog):
    MultiProcessAdapter.warning_once.cache_clear()  # another test may have had the one warning
    warn_of_invalid(0.1)
    assert not caplog.text
    warn_of_invalid(0.09)
    warn_of_invalid(0.05)
    assert len(caplog.records) == 1
    assert "Less than 10% of the responses of a rollout hold the token that ends them" in caplog.text


@pytest.mark.parametrize(("name", "message"), [("fsdp", "`fsdp_version` is 1"), ("deepspeed", "DeepSpeed is on, but")])
def test_the_trainer_looks_at_the_launch(make_ppo, monkeypatch, name, message):
    create = Trainer.create_accelerator_and_postprocess

    def as_launched(trainer):
        create(trainer)
        setattr(trainer, f"is_{name}_enabled", True)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1) if name == "fsdp" else None
        monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", as_launched)
    with pytest.raises(ValueError, match=message):
        make_ppo()
