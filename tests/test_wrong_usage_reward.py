"""Mistakes with reward models and their data, each of which ended inside a library or in garbage before."""

import logging
import re
from functools import partial

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel
from ppo_runs import PROMPTS
from reward_records import records
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from trl_ziegler import BestOfKRewardTrainer, as_reward_model, load_reward_model, score_token_ids
from trl_ziegler.preference_data import prepare_preferences, tokenize_prompt

pytest_plugins = ("ppo_fixtures", "reward_fixtures")

CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def labelled(n=1, **columns):
    """`n` tokenised records with three candidates, the second one best."""
    rows = {"prompt_ids": [[1, 2]] * n, "completion_ids": [[[3], [4, 5], [6]]] * n, "label": [1] * n}
    return Dataset.from_dict({**rows, **columns})


# ---- Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (lambda model: None, "`model` is None; give a sequence classifier of transformers"),
        (lambda model: torch.nn.Linear(2, 2), "`model` is a Linear; give a sequence classifier of transformers"),
        (torch.nn.DataParallel, "`model` is a DataParallel; give the model inside it, its `module`."),
        (
            partial(torch.compile, backend="eager"),
            "`model` is a OptimizedModule; give the model inside it, its `_orig_mod`.",
        ),
        (lambda model: Pipeline(model), "`model` is a Pipeline; give the model inside it, its `model`."),
    ],
    ids=["none", "layer", "parallel", "compiled", "pipeline"],
)
def test_what_is_no_model_of_transformers(make_classifier, tokenizer, config, wrap, sentence):
    model = wrap(make_classifier())
    with pytest.raises(ValueError, match=re.escape(sentence)):
        BestOfKRewardTrainer(model, config(), train_dataset=records(4), processing_class=tokenizer)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        as_reward_model(model)


class Pipeline:
    """As those of transformers, which keep their model so."""

    def __init__(self, model):
        self.model = model


def test_a_path_may_be_a_path_object(make_causal_lm, tokenizer, tmp_path, config):
    make_causal_lm().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    BestOfKRewardTrainer(tmp_path / "start", config(), train_dataset=records(4))


def test_a_tokenizer_given_by_its_path(make_classifier, config):
    with pytest.raises(ValueError, match="`processing_class` is 'start'; give the model's tokenizer, for example"):
        BestOfKRewardTrainer(make_classifier(), config(), train_dataset=records(4), processing_class="start")


SMALL_T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
SMALL_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: T5ForSequenceClassification(T5Config(num_labels=1, **SMALL_T5)),
            "is a 't5', an encoder-decoder, but",
        ),
        (
            lambda: BertForSequenceClassification(BertConfig(num_labels=1, **SMALL_BERT)),
            "is a BertForSequenceClassification with the head classifier instead of `score`",
        ),
    ],
    ids=["encoder-decoder", "encoder"],
)
def test_models_that_are_no_decoders(make, sentence, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"`model` {sentence}")):
        as_reward_model(model)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} {sentence}")):
        load_reward_model(tmp_path)


def test_a_fresh_head_is_said_once_silent_or_refused_as_asked(make_causal_lm, make_reward_model, tmp_path, caplog):
    make_causal_lm().save_pretrained(tmp_path / "start")
    with caplog.at_level(logging.WARNING):
        load_reward_model(tmp_path / "start", without_head="fresh")
        assert "head" not in caplog.text
        load_reward_model(tmp_path / "start")
        load_reward_model(tmp_path / "start", seed=2)
    assert caplog.text.count(f"{tmp_path / 'start'} has no reward head and gets a fresh one") == 1
    with pytest.raises(ValueError, match="start is a language model without a reward head; train one with recipes"):
        load_reward_model(tmp_path / "start", without_head="refuse")
    make_reward_model().save_pretrained(tmp_path / "trained")
    load_reward_model(tmp_path / "trained", without_head="refuse")
    assert "trained has no" not in caplog.text


def test_a_trained_adapter_is_no_fresh_head(make_adapter, tmp_path, caplog):
    make_adapter().save_pretrained(tmp_path / "adapter")
    caplog.clear()
    load_reward_model(tmp_path / "adapter", without_head="refuse")
    assert "no reward head" not in caplog.text


# ---- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peft_config", "sentence"),
    [
        (LoraConfig(task_type="CAUSAL_LM"), "`task_type` of `peft_config` is 'CAUSAL_LM'; a reward model needs 'SEQ_"),
        ({"r": 8}, "`peft_config` is a dict; give a configuration of PEFT"),
    ],
    ids=["task", "dict"],
)
def test_configurations_of_adapters(make_trainer, peft_config, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_trainer(records(4), peft_config=peft_config)


def test_an_adapter_without_a_task_passes(make_trainer):
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    make_trainer(records(4), peft_config=config, max_steps=1).train()


def test_a_frozen_model(make_classifier, make_trainer):
    with pytest.raises(ValueError, match="so nothing would be trained; call `model"):
        make_trainer(records(4), model=make_classifier().requires_grad_(False))


def test_an_adapter_loaded_for_inference(make_adapter, make_trainer, tmp_path):
    make_adapter().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="nothing would be trained; load the adapter with `is_trainable=True`"):
        make_trainer(records(4), model=load_reward_model(tmp_path / "adapter"))
    assert isinstance(load_reward_model(tmp_path / "adapter", is_trainable=True), PeftModel)


def test_float16_weights_are_refused_and_bfloat16_ones_warned_of(make_classifier, make_trainer, caplog):
    with pytest.raises(ValueError, match=r"`model` trains float16 weights, .* `dtype=torch.float32`, and set `bf16`"):
        make_trainer(records(4), model=make_classifier().half())
    make_trainer(records(4), model=make_classifier())
    assert "bfloat16" not in caplog.text
    make_trainer(records(4), model=make_classifier().bfloat16())
    assert "`model` trains bfloat16 weights, which round away steps" in caplog.text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learning_rate": "3e-5"}, "`learning_rate` is '3e-5'; give a number of at least 0."),
        ({"learning_rate": None}, "`learning_rate` is None; give a number"),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0; give a number of at least 0"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; give at least 1."),
        ({"num_train_epochs": 0}, "`num_train_epochs` is 0 and `max_steps` -1, with which nothing is trained"),
        ({"center_rewards_coefficient": -0.1}, "`center_rewards_coefficient` is -0.1; give a number of at least 0"),
        ({"fp16_full_eval": True}, "`fp16_full_eval` is True on a CPU, where it only loses precision; leave it out."),
    ],
)
def test_numbers_that_train_nothing(config, fields, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        config(**fields)


def test_a_batch_larger_than_the_data_that_is_left_out(make_trainer):
    make_trainer(records(4), per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="and the 4 records of `train_dataset` are fewer than one batch of 8, so"):
        make_trainer(records(4), per_device_train_batch_size=8, dataloader_drop_last=True)


def test_hardly_any_record_left_of_many(make_trainer):
    rows = records(12)
    long = Dataset.from_dict({**rows.to_dict(), "prompt_ids": [[1] * 90] * 10 + rows["prompt_ids"][:2]})
    with pytest.raises(
        ValueError, match="Only 2 of 12 records of `train` are left, fewer than one batch of 4: 10 are longer"
    ):
        make_trainer(long, max_length=50)


# ---- Ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ([1, 999], "Entry 1 has the id 999, which is outside the reward model's"),
        ([-1], "Entry 1 has the id -1, which is outside the reward model's"),
        ([1] * 256, "Entry 1 has 257 tokens, the reward model reads 256; cut it first."),
    ],
)
def test_ids_that_cannot_be_scored(make_reward_model, query, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        score_token_ids(make_reward_model(), [[1], query], [[2], [2]])


def test_a_tokenizer_with_more_ids_than_the_model(make_trainer):
    with pytest.raises(ValueError, match=r"Row 1 of `train` has the id 5000, which is outside the model's \d+; use"):
        make_trainer(labelled(2, prompt_ids=[[1], [5000]]))


# ---- Records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (True, "`label` is True, a truth value; give the index of the best completion instead."),
        ("0", "`label` is '0', a text; give the index of the best completion as a number."),
        (0.5, "`label` is 0.5, but with 3 completions it is in 0..2; correct it."),
        (float("nan"), "`label` is nan, but with 3 completions"),
    ],
)
def test_labels_that_are_no_index(label, sentence):
    with pytest.raises(ValueError, match=re.escape(f"Row 0 of `train`: {sentence}")):
        prepare_preferences(labelled(label=[label]), None)


def test_whole_floats_are_labels(make_trainer):
    rows = labelled(4, label=[1.0, 2.0, 0.0, 1.0])
    prepared = prepare_preferences(rows, None)["label"][:]
    assert prepared == [1, 2, 0, 1] and all(type(label) is int for label in prepared)
    streamed = list(prepare_preferences(rows.to_iterable_dataset(), None))
    assert all(type(row["label"]) is int for row in streamed)
    make_trainer(rows, max_steps=1).train()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"scores": [[3.0, 2.0, 1.0]]}, "`label` is 1, but by `scores` completion 0 is the best"),
        ({"ranking": [[2, 1, 0]]}, "`label` is 1, but by `ranking` completion 2 is the best"),
    ],
)
def test_judgements_that_contradict_each_other(columns, sentence):
    with pytest.raises(ValueError, match=f"Row 0 of `train`: {sentence}"):
        prepare_preferences(labelled(**columns), None)


def test_a_label_that_contradicts_the_chosen_completion(tokenizer):
    row = {"prompt": ["she"], "completions": [[" saw", " was"]], "chosen": [" saw"], "rejected": [" was"]}
    prepare_preferences(Dataset.from_dict({**row, "label": [0]}), tokenizer)
    with pytest.raises(ValueError, match="`label` is 1, but by `chosen` completion 0 is the best"):
        prepare_preferences(Dataset.from_dict({**row, "label": [1]}), tokenizer)


@pytest.mark.parametrize(
    "columns", [{"scores": [[1.0, 2.0, 2.0]]}, {"ranking": [[1, 0, 2]]}, {"scores": [[1.0, 0.0]]}]
)
def test_judgements_that_agree_pass(columns):
    assert prepare_preferences(labelled(**columns), None)["label"][:] == [1]


def test_labels_that_count_from_one_are_warned_of(caplog):
    prepare_preferences(labelled(63), None)
    prepare_preferences(labelled(64, label=[0] + [1] * 63), None)
    assert "count from" not in caplog.text
    prepare_preferences(labelled(64), None)
    assert "`train`: none of 64 labels is 0; completions count from 0, so subtract 1 if" in caplog.text


REPEATING = {"prompt": ["she", "he"], "completions": [["she saw", "she was"], ["he saw", "he was"]], "label": [0, 1]}


@pytest.mark.parametrize(
    "columns",
    [
        REPEATING,
        {"prompt": ["she", "he"], "chosen": ["she saw", "he saw"], "rejected": ["she was", "he was"]},
        {"prompt_ids": [[1, 2], [3]], "completion_ids": [[[1, 2, 4], [1, 2, 5]], [[3, 4], [3, 5]]], "label": [0, 1]},
    ],
    ids=["texts", "pairs", "ids"],
)
def test_completions_that_all_begin_with_their_prompt(tokenizer, columns):
    with pytest.raises(ValueError, match="All completions of the 2 records of `train` begin with their prompt, which"):
        prepare_preferences(Dataset.from_dict(columns), tokenizer)


def test_completions_of_which_some_begin_with_their_prompt_are_warned_of(tokenizer, caplog):
    completions = [["she saw", "she was"], [" saw", "he was"]]
    prepared = prepare_preferences(Dataset.from_dict({**REPEATING, "completions": completions}), tokenizer)
    assert len(prepared) == 2
    assert "in 1 of 2 records all completions begin with the prompt; if they repeat it, cut it off" in caplog.text


def test_a_limit_that_drops_most_records_is_warned_of(caplog):
    rows = labelled(4, prompt_ids=[[1, 2], [1], [1, 2], [1, 2]])
    assert len(prepare_preferences(rows, None, max_length=3)) == 1
    assert "`train`: 75% of the records are longer than `max_length` (3), and the rest may be unlike" in caplog.text


# ---- Chats ----------------------------------------------------------------------------------------------------------


def user(text):
    return [{"role": "user", "content": text}]


CHATS = [
    (
        [{"from": "human", "value": "hi"}],
        "has the keys ['from', 'value'] in message 0; a chat message has `role` and `content`, so rename them.",
    ),
    (user(None), "has no `content` in message 0 ({'role': 'user', 'content': None}); give text, or drop the row."),
]


@pytest.mark.parametrize(("chat", "sentence"), CHATS, ids=["keys", "content"])
def test_chat_messages_of_another_form_in_records(chat_tokenizer, chat, sentence):
    for prompt, completion, field in ((chat, user("a"), "`prompt`"), (user("a"), chat, "completion 0")):
        rows = IterableDataset.from_generator(
            lambda row: iter([row]),
            gen_kwargs={"row": {"prompt": prompt, "completions": [completion, completion], "label": 0}},
        )
        with pytest.raises(ValueError, match=re.escape(f"Row 0 of `train`: {field} {sentence}")):
            list(prepare_preferences(rows, chat_tokenizer))


@pytest.mark.parametrize(("chat", "sentence"), CHATS, ids=["keys", "content"])
def test_chat_messages_of_another_form_in_prompts(make_ppo, chat_tokenizer, chat, sentence):
    with pytest.raises(ValueError, match=re.escape(f"`prompt` {sentence}")):
        make_ppo(train_dataset=Dataset.from_dict({"prompt": [chat] * 4}), processing_class=chat_tokenizer)


def test_a_call_of_a_tool_needs_no_content(chat_tokenizer):
    tokenize_prompt(chat_tokenizer, [*user("a"), {"role": "assistant", "tool_calls": [{"name": "sum"}]}, *user("b")])


def test_a_prompt_that_the_assistant_ended(make_ppo, chat_tokenizer):
    ended = [*user("hi"), {"role": "assistant", "content": "good day"}]
    sentence = "`prompt` ends with a turn of the assistant ('good day'), which a response would follow as a second one"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_ppo(train_dataset=Dataset.from_dict({"prompt": [ended] * 4}), processing_class=chat_tokenizer)
    completions = [[{"role": "assistant", "content": text}] for text in "ab"]
    rows = Dataset.from_dict({"prompt": [ended], "completions": [completions], "label": [0]})
    with pytest.raises(ValueError, match=re.escape(f"Row 0 of `train`: {sentence}")):
        prepare_preferences(rows, chat_tokenizer)


def test_a_prompts_row_is_named_where_the_caller_knows_it(tokenizer):
    with pytest.raises(ValueError, match=r"Row 3 of `train_dataset`: `prompt` is None; give text or a list"):
        tokenize_prompt(tokenizer, None, where="Row 3 of `train_dataset`")
    assert tokenize_prompt(tokenizer, PROMPTS[0], where="Row 0") == tokenize_prompt(tokenizer, PROMPTS[0])
