"""Mistakes with reward models and their data, each of which ended inside a library or in garbage before."""

import re

import pytest
from datasets import Dataset, IterableDataset
from ppo_runs import PROMPTS

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
