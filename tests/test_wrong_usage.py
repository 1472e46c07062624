"""Mistakes a user of TRL makes, each of which ended inside a library before: one sentence with the way out."""

import re
from functools import partial

import pytest
import torch
from datasets import Dataset
from ppo_runs import PROMPTS
from reward_records import records
from transformers import TrainingArguments
from trl import RewardConfig

from trl_ziegler import BestOfKRewardTrainer, ZieglerPPOTrainer, as_reward_model, score_token_ids
from trl_ziegler._compat import PPOConfig

pytest_plugins = ("ppo_fixtures", "reward_fixtures")

QUIET = {"report_to": "none", "use_cpu": True, "save_strategy": "no"}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"prompt": [[1, 2]] * 4},
            "`prompt` is a list that begins with 1, which is no chat message; token ids belong",
        ),
        (
            {"prompt": [chat("hi")] * 4},
            "the tokenizer has no chat template; set `tokenizer.chat_template`, or give text",
        ),
        ({"prompt": [*PROMPTS[:3], None]}, "`prompt` is None; give text or a list of chat messages, or drop the row."),
        (
            {"input_ids": [[65, 66], [65, 0]] * 2, "attention_mask": [[1, 1], [1, 0]] * 2},
            "Row 1 of `train_dataset` is padded (its `attention_mask` has zeros)",
        ),
    ],
)
def test_prompts_that_are_none(make_ppo, columns, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_ppo(train_dataset=Dataset.from_dict(columns))


def test_prompts_tokenised_without_padding_pass(make_ppo):
    make_ppo(train_dataset=Dataset.from_dict({"input_ids": [[65, 66]] * 4, "attention_mask": [[1, 1]] * 4}))


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (None, "returned None; return a list with one float (or None) per completion."),
        (1.0, "returned 1.0; return a list with one float (or None) per completion."),
        (torch.tensor(1.0), r"returned tensor(1.); return a list with one float (or None) per completion."),
        (["good"] * 4, "returned ['good', 'good', 'good', 'good']; return floats (or None) and nothing else."),
        (torch.zeros(3), "returned 3 scores for 4 completions; return one float (or None) for each."),
    ],
)
def test_what_a_reward_function_may_not_return(train, returned, sentence):
    def taste(prompts, completions, **columns):
        return returned

    with pytest.raises(ValueError, match=re.escape(f"Reward function 'taste' {sentence}")):
        train(reward_model=taste)


def test_scores_may_be_a_tensor(train):
    train(reward_model=lambda prompts, completions, **columns: torch.arange(4.0), max_steps=1)


def without_columns(prompts, completions):
    return [0.0] * len(completions)


def of_texts_alone(texts, **columns):
    return [0.0] * len(texts)


@pytest.mark.parametrize("function", [without_columns, of_texts_alone])
def test_a_reward_function_of_another_signature_is_told_ours(train, function):
    name = function.__name__
    sentence = f"Reward function '{name}' cannot be called with prompts, completions and the columns ['number'] ("
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        train(reward_model=function)
    assert f"define it as `def {name}(prompts, completions, **columns)`." in str(error.value)


def test_a_type_error_inside_a_reward_function_stays_what_it_is(train):
    with pytest.raises(TypeError, match="unsupported operand"):
        train(reward_model=lambda prompts, completions, **columns: [1 + "a"])


def test_reward_model_given_by_its_path(make_ppo):
    with pytest.raises(
        ValueError, match="holds 'my-reward'; give a model \\(`load_reward_model` loads one from a path"
    ):
        make_ppo(reward_model="my-reward")


@pytest.mark.parametrize(
    "config", [partial(PPOConfig, bf16=False, gradient_checkpointing=False), TrainingArguments], ids=["ppo", "plain"]
)
def test_a_configuration_of_another_class(make_causal_lm, tokenizer, tmp_path, config):
    args = config(str(tmp_path), **QUIET)
    name = type(args).__name__
    with pytest.raises(ValueError, match=f"`args` is a {name}; give a `ZieglerPPOConfig`, as the first argument."):
        ZieglerPPOTrainer(args, tokenizer, make_causal_lm(), reward_model=without_columns)


def test_a_configuration_of_trls_reward_trainer(make_classifier, tokenizer, tmp_path):
    args = RewardConfig(str(tmp_path), bf16=False, gradient_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match="`args` is a RewardConfig; give a `BestOfKRewardConfig`"):
        BestOfKRewardTrainer(make_classifier(), args, train_dataset=records(4), processing_class=tokenizer)


def test_float16(make_ppo):
    with pytest.raises(ValueError, match=r"`fp16` is True, which this trainer does not use: its loss scaling.*`bf16`"):
        make_ppo(fp16=True)


def test_ppo_without_a_tokenizer(make_ppo):
    with pytest.raises(ValueError, match="`processing_class` is None; give the policy's tokenizer"):
        make_ppo(processing_class=None)


def test_a_reward_trainer_on_a_model_from_memory_without_a_tokenizer(make_classifier, config):
    with pytest.raises(
        ValueError, match="`processing_class` is missing, and `model` does not know where it came from"
    ):
        BestOfKRewardTrainer(make_classifier(), config(), train_dataset=records(4))


def test_a_language_model_for_a_reward_model(make_causal_lm):
    with pytest.raises(ValueError, match="`model` is a GPT2LMHeadModel, a language model; `load_reward_model"):
        as_reward_model(make_causal_lm())


@pytest.mark.parametrize(
    "texts", [{"query_ids": ["a"], "response_ids": [[1]]}, {"query_ids": [[1]], "response_ids": ["a"]}]
)
def test_text_for_token_ids(make_reward_model, texts):
    with pytest.raises(ValueError, match="_ids` holds text; give token ids, for example `tokenizer"):
        score_token_ids(make_reward_model(), **texts)


def test_a_policys_folder_that_is_not_there_is_named_before_the_hub_is_asked(tmp_path, make_ppo):
    with pytest.raises(FileNotFoundError, match=re.escape(f"The folder {tmp_path / 'none'} does not exist")):
        make_ppo(model=str(tmp_path / "none"))


def test_fp16_for_rewards_where_it_would_train_in_float32(config):
    with pytest.raises(ValueError, match="`fp16` is True, but on a CPU it would train in float32; set `bf16`, or"):
        config(fp16=True)
