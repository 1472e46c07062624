"""Mistakes a user of TRL makes, each of which ended inside a library before: one sentence with the way out."""

import copy
import re
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from ppo_parts import prompts
from ppo_runs import PROMPTS, letter_e
from reward_records import records
from transformers import AutoModelForCausalLM, DataCollatorWithPadding, TrainingArguments
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
    sentence = f"'{name}' cannot be called with prompts, completions and the columns ['number'] of `train_dataset` ("
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


def test_a_collator_that_pads_on_the_right(make_ppo, tokenizer):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    ids = Dataset.from_dict({"input_ids": tokenizer(PROMPTS)["input_ids"]})
    trainer = make_ppo(data_collator=DataCollatorWithPadding(tokenizer), train_dataset=ids)
    with pytest.raises(ValueError, match="`data_collator` pads on the right"):
        trainer.train()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_ids_without_a_mask(make_ppo, tokenizer, side):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    ids = tokenizer(["the cat", "he saw a bright room"], padding="max_length", max_length=12)["input_ids"]
    with pytest.raises(ValueError, match="Row 0 of `train_dataset` is padded with the id"):
        make_ppo(train_dataset=Dataset.from_dict({"input_ids": ids * 2}))


def test_rows_in_torchs_format_pass(make_ppo):
    make_ppo(train_dataset=prompts().with_format("torch"), max_steps=1).train()


def test_ids_that_are_none(make_ppo):
    with pytest.raises(ValueError, match="Row 0 of `train_dataset` has no list of integers in `input_ids` but 'text'"):
        make_ppo(train_dataset=Dataset.from_dict({"input_ids": ["text"] * 4}))


def test_no_rows(make_ppo):
    with pytest.raises(ValueError, match="`train_dataset` has no rows; check where it was loaded from"):
        make_ppo(train_dataset=prompts().select([]))


def test_a_column_that_a_reward_function_needs(make_ppo):
    def by_number(prompts, completions, number):
        return [float(n) for n in number]

    make_ppo(reward_model=by_number)
    with pytest.raises(ValueError, match=r"'by_number' cannot be called .* columns \[\] of `eval_dataset\['b'\]`"):
        make_ppo(reward_model=by_number, eval_dataset={"a": prompts(3), "b": prompts(3).select_columns("prompt")})


def test_a_column_that_is_called_as_the_texts_are(make_ppo):
    with pytest.raises(ValueError, match="A column of `train_dataset` is called `completions`, and a reward"):
        make_ppo(train_dataset=prompts().rename_column("number", "completions"))


def test_a_function_that_is_only_logged_is_no_score(train):
    def never(prompts, completions, **columns):
        return [None] * len(prompts)

    trainer = train(reward_model=[never, letter_e], reward_weights=[1.0, 0.0], start=False)
    with pytest.raises(ValueError, match="'never' gave no finite score for the prompt"):
        trainer.train()


def test_a_pad_token_that_the_policy_does_not_know(train, make_causal_lm, tokenizer, tmp_path):
    """`Trainer` takes it over into the configuration, with which a model that has a `padding_idx` does not load."""
    model = make_causal_lm("llama")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    train(model=model, processing_class=tokenizer, max_steps=1).save_model(str(tmp_path / "saved"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.pad_token_id is None


def frozen(model):
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            lambda lm, clf: {"model": frozen(lm())},
            "No parameter of `model` trains: all are frozen, or its adapter",
        ),
        (lambda lm, clf: {"model": lm().half()}, "`model` trains weights in float16, in which the optimiser's steps"),
        (lambda lm, clf: {"model": torch.nn.DataParallel(lm())}, "`model` is a DataParallel; give a causal language"),
        (lambda lm, clf: {"model": clf()}, "`model` is a GPT2ForSequenceClassification, whose forward has no"),
        (lambda lm, clf: {"peft_config": {"r": 8}}, "`peft_config` is a dict; give a `LoraConfig`"),
        (
            lambda lm, clf: {"model": get_peft_model(lm(), lora()), "peft_config": lora()},
            "`model` has an adapter already and `peft_config` is given; leave that out.",
        ),
        (lambda lm, clf: {"ref_model": "path"}, "`ref_model` is 'path'; load it, and give the model itself."),
        (lambda lm, clf: {"value_model": "path"}, "`value_model` is 'path'; load it, and give the model itself."),
        (lambda lm, clf: {"ref_model": letter_e}, "`ref_model` is a function; a reward function is `reward_model`."),
        (lambda lm, clf: {"ref_model": clf()}, "`ref_model` is a GPT2ForSequenceClassification, whose forward"),
        (
            lambda lm, clf: {"reward_model": torch.nn.DataParallel(clf())},
            "`reward_model` holds a DataParallel; give",
        ),
        (lambda lm, clf: {"task": "tldr"}, "`task` is 'tldr'; give a `Task`"),
        (lambda lm, clf: {"reward_weights": [0.0]}, "All `reward_weights` are 0, so nothing but the KL would count"),
    ],
)
def test_models_that_are_none(make_ppo, make_causal_lm, make_classifier, given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_ppo(**given(make_causal_lm, make_classifier))


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)


def test_an_adapter_that_was_loaded_for_inference(make_ppo, make_causal_lm, tmp_path):
    get_peft_model(make_causal_lm(), lora()).save_pretrained(tmp_path / "adapter")
    policy = PeftModel.from_pretrained(make_causal_lm(), tmp_path / "adapter")
    with pytest.raises(ValueError, match="its adapter was loaded without `is_trainable=True`"):
        make_ppo(model=policy)
    make_ppo(model=PeftModel.from_pretrained(make_causal_lm(), tmp_path / "adapter", is_trainable=True))


def test_model_and_tokenizer_in_each_others_place(make_ppo, make_causal_lm, tokenizer):
    with pytest.raises(ValueError, match=r"`model` is a \w+; .* \(the order is args, processing_class, model\)"):
        make_ppo(model=tokenizer, processing_class=make_causal_lm())


def test_a_models_folder_as_a_path_object(make_ppo, make_causal_lm, tmp_path):
    make_causal_lm().save_pretrained(tmp_path / "model")
    assert make_ppo(model=tmp_path / "model").model.policy.dtype == torch.float32


def test_an_optimizer_without_the_value_head_gets_it(make_ppo, make_causal_lm):
    model = make_causal_lm()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = make_ppo(model=model, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.model.value_head.weight.any()


def test_an_optimizer_of_other_weights(make_ppo, make_causal_lm):
    model = make_causal_lm()
    with pytest.raises(ValueError, match="holds none of the policy's trained weights"):
        make_ppo(model=model, optimizers=(torch.optim.AdamW(model.parameters()), None), peft_config=lora())


@pytest.mark.parametrize("returned", [{0.0, 1.0, 2.0, 3.0}, {0: 9.0, 1: 9.0, 2: 9.0, 3: 9.0}])
def test_scores_without_an_order(train, returned):
    with pytest.raises(ValueError, match="return a list with one float"):
        train(reward_model=lambda prompts, completions, **columns: returned)


def test_a_score_of_a_billion_is_no_wrong_sign(train):
    train(reward_model=lambda prompts, completions, **columns: [-1e9, 1.0, 2.0, 3.0], max_steps=1)


def test_the_row_of_a_prompt_that_is_none_is_named(make_ppo):
    with pytest.raises(ValueError, match="Row 2 of `train_dataset`: `prompt` is None"):
        make_ppo(train_dataset=Dataset.from_dict({"prompt": [*PROMPTS[:2], None, PROMPTS[2]]}))


class TestResuming:
    CHECKPOINTS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "num_ppo_epochs": 1}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("changed", "sentence"),
        [
            ({"num_mini_batches": 2}, "was written with 1 optimiser steps an update, this run has 2"),
            ({"per_device_train_batch_size": 8}, "was written with 4 episodes an update, this run has 8"),
            ({"peft_config": lora()}, "was written without this adapter, the run is with one; resume with the same."),
        ],
    )
    def test_another_update_or_another_policy(self, train, changed, sentence):
        train(**self.CHECKPOINTS)
        with pytest.raises(ValueError, match=sentence):
            train(resume=True, **{**self.CHECKPOINTS, "max_steps": 4, **changed})

    def test_another_value_function(self, train, make_classifier):
        train(**self.CHECKPOINTS)
        with pytest.raises(ValueError, match="with a value head on the policy, this run has a value network"):
            train(resume=True, value_model=make_classifier(), **self.CHECKPOINTS)

    def test_another_fixed_coefficient_is_said_to_be_unused(self, train, caplog):
        train(**self.CHECKPOINTS, kl_coef=0.05)
        train(resume="True", kl_coef=1.0, **{**self.CHECKPOINTS, "max_steps": 3})
        assert "`kl_coef` is 1.0, but the run goes on with the 0.05 of" in caplog.text

    def test_the_folder_of_the_checkpoints(self, train, tmp_path):
        train(**self.CHECKPOINTS)
        run = tmp_path / "run"
        with pytest.raises(ValueError, match=re.escape(f"which holds {run / 'checkpoint-2'}; give that, or True")):
            train(resume=str(run), **self.CHECKPOINTS)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="so it is no checkpoint"):
            train(resume=str(tmp_path / "empty"), **self.CHECKPOINTS)


def test_a_model_that_another_trainer_had(train, make_causal_lm):
    """The former value function's hook on the head held a tensor of its last pass, which nobody could copy."""
    model = make_causal_lm()
    train(model=model, max_steps=1)
    train(model=model, max_steps=1)
    copy.deepcopy(model)


def test_fp16_for_rewards_where_it_would_train_in_float32(config):
    with pytest.raises(ValueError, match="`fp16` is True, but on a CPU it would train in float32; set `bf16`, or"):
        config(fp16=True)
