"""Tokenisation, record formats and their checks."""

import logging

import pytest
from datasets import Dataset, IterableDataset
from tokenizers.processors import TemplateProcessing

from trl_ziegler.preference_data import prepare_preferences, tokenize_prompt, tokenize_prompt_completion

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def with_specials(tokenizer):
    """The tokenizer, putting BOS before and EOS behind each text (here one id, that of `<|endoftext|>`)."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    return tokenizer


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def prepare(tokenizer, columns, **kwargs):
    return prepare_preferences(Dataset.from_dict(columns), tokenizer, **kwargs)


def three(judgement, value, n=1):
    """`n` tokenised records with three candidates."""
    return {"prompt_ids": [[1, 2]] * n, "completion_ids": [[[3], [4, 5], [6]]] * n, judgement: [value] * n}


class TestFormattedDatasets:
    """A format of `datasets` gives arrays for numbers and lists; records are read without."""

    @pytest.mark.parametrize("kind", ["torch", "numpy", "arrow"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_formatted_records_are_those_without_a_format(self, tokenizer, kind, stream):
        text = {"prompt": ["she saw"], "completions": [[" the cat", " a dog"]], "label": [1]}
        for columns, loss in ((text, "best_of_k"), (three("scores", [0.5, 1.0, 2.0]), "scalar")):
            plain = Dataset.from_dict(columns)
            formatted = (plain.to_iterable_dataset() if stream else plain).with_format(kind)
            expected = list(prepare_preferences(plain, tokenizer, loss_type=loss))
            assert list(prepare_preferences(formatted, tokenizer, loss_type=loss)) == expected

    def test_a_transform_of_ones_own_is_kept(self, tokenizer):
        dataset = Dataset.from_dict(three("label", 0)).with_transform(lambda rows: {**rows, "label": [2]})
        assert prepare_preferences(dataset, tokenizer).with_format(None)["label"] == [2]


class TestTokenization:
    def test_parts_are_encoded_on_their_own_and_no_eos_is_appended(self, tokenizer):
        prompt_ids, completion_ids = tokenize_prompt_completion(tokenizer, "she saw", " the cat")
        assert tokenizer.decode(prompt_ids) == "she saw" and tokenizer.decode(completion_ids) == " the cat"
        assert tokenizer.eos_token_id not in prompt_ids + completion_ids
        # " t|he" cut inside a word stays two parts, although the joined text is one id
        assert sum(map(len, tokenize_prompt_completion(tokenizer, " t", "he"))) > len(tokenizer(" the")["input_ids"])

    def test_leading_special_token_is_kept_and_a_trailing_one_left_out(self, with_specials):
        special = with_specials.eos_token_id
        prompt_ids, completion_ids = tokenize_prompt_completion(with_specials, "she", " saw")
        assert prompt_ids[0] == special and special not in prompt_ids[1:] and special not in completion_ids
        assert tokenize_prompt(with_specials, "she") == prompt_ids

    def test_chat_completion_is_what_the_template_adds(self, chat_tokenizer):
        prompt_ids, completion_ids = tokenize_prompt_completion(chat_tokenizer, user("hi"), assistant("good"))
        assert chat_tokenizer.decode(prompt_ids) == "<user>hi</><assistant>"
        assert chat_tokenizer.decode(completion_ids) == "good</>"
        assert tokenize_prompt(chat_tokenizer, user("hi")) == prompt_ids

    def test_template_that_rewrites_the_prompt_is_refused(self, chat_tokenizer):
        chat_tokenizer.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
        with pytest.raises(ValueError, match="renders the prompt differently once an answer follows"):
            tokenize_prompt_completion(chat_tokenizer, user("hi"), assistant("good"))

    def test_text_with_chat_is_refused(self, chat_tokenizer):
        with pytest.raises(ValueError, match="`prompt` is a list and its completion a str"):
            tokenize_prompt_completion(chat_tokenizer, user("hi"), "good")


class TestFormats:
    def test_text_records_with_differing_k_and_extra_columns(self, tokenizer):
        columns = {
            "prompt": ["she", "he"],
            "completions": [[" saw", " loved", " hated"], [" was", " found"]],
            "label": [2, 1],
            "author": ["A", "B"],
        }
        dataset = prepare(tokenizer, columns)
        assert set(dataset.column_names) == {*columns, "prompt_ids", "completion_ids"}
        assert [tokenizer.decode(ids) for ids in dataset[0]["completion_ids"]] == [" saw", " loved", " hated"]
        assert dataset["label"][:] == [2, 1] and dataset["author"][:] == ["A", "B"]

    def test_pairs_are_two_candidates_with_the_first_one_best(self, tokenizer):
        dataset = prepare(tokenizer, {"prompt": ["she"], "chosen": [" saw"], "rejected": [" loved"], "scores": ["?"]})
        assert [tokenizer.decode(ids) for ids in dataset[0]["completion_ids"]] == [" saw", " loved"]
        assert dataset[0]["label"] == 0

    def test_pairs_with_the_prompt_inside(self, with_specials):
        row = prepare(with_specials, {"chosen": ["she saw"], "rejected": ["she loved"]})[0]
        assert row["prompt_ids"] == [] and row["completion_ids"][0][0] == with_specials.eos_token_id
        assert with_specials.decode(row["completion_ids"][1][1:]) == "she loved"

    def test_chat_records(self, chat_tokenizer):
        columns = {"prompt": [user("hi")], "completions": [[assistant("good"), assistant("bad")]], "label": [0]}
        row = prepare(chat_tokenizer, columns)[0]
        assert [chat_tokenizer.decode(ids) for ids in row["completion_ids"]] == ["good</>", "bad</>"]
        row = prepare(
            chat_tokenizer, {"chosen": [user("a") + assistant("b")], "rejected": [user("a") + assistant("c")]}
        )[0]
        assert chat_tokenizer.decode(row["completion_ids"][0]) == "<user>a</><assistant>b</>"

    def test_tools_and_template_arguments_reach_the_template(self, chat_tokenizer):
        chat_tokenizer.chat_template = "{{ tools[0].name }}{{ mood }}" + CHAT_TEMPLATE
        columns = {"prompt": [user("hi")], "completions": [[assistant("good"), assistant("bad")]], "label": [0]}
        columns |= {"tools": ['[{"name": "sum"}]'], "chat_template_kwargs": [{"mood": "!"}]}
        assert chat_tokenizer.decode(prepare(chat_tokenizer, columns)[0]["prompt_ids"]) == "sum!<user>hi</><assistant>"

    def test_tokenised_records_need_no_tokenizer(self):
        dataset = prepare(None, three("label", 1))
        assert dataset[0] == {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "label": 1}
        dataset = prepare(None, {"chosen_ids": [[1, 2]], "rejected_ids": [[1, 3]]})
        assert dataset[0]["completion_ids"] == [[1, 2], [1, 3]] and dataset[0]["label"] == 0

    @pytest.mark.parametrize("loss_type", ["best_of_k", "pairwise", "ranking"])
    def test_preparing_twice_changes_nothing(self, loss_type):
        once = prepare(None, three("ranking", [2, 0, 1]), loss_type=loss_type)
        twice = prepare_preferences(once, None, loss_type=loss_type)
        assert twice.to_dict() == once.to_dict()

    def test_streamed_records(self, tokenizer):
        rows = [{"prompt": "she", "completions": [" saw", " was"], "label": 1}]
        rows.append({"prompt": "she", "completions": [" saw", " saw"], "label": 1})
        stream = IterableDataset.from_generator(lambda: iter(rows))
        prepared = list(prepare_preferences(stream, tokenizer))
        assert len(prepared) == 1 and tokenizer.decode(prepared[0]["completion_ids"][1]) == " was"


class TestJudgements:
    @pytest.mark.parametrize(
        ("judgement", "value", "label"), [("label", 1, 1), ("ranking", [2, 0, 1], 2), ("scores", [1.0, 3.0, 2.0], 1)]
    )
    def test_best_of_k_label_of_every_judgement(self, judgement, value, label):
        assert prepare(None, three(judgement, value))[0]["label"] == label

    def test_tied_best_scores_give_no_label(self, caplog):
        columns = {
            "prompt_ids": [[1]] * 2,
            "completion_ids": [[[3], [4], [5]]] * 2,
            "scores": [[2.0, 2.0, 1.0], [1.0, 2.0, 1.0]],
        }
        with caplog.at_level(logging.WARNING):
            dataset = prepare(None, columns)
        assert dataset["label"][:] == [1]
        assert "dropped 1 of 2 records (1 tied; max_length None)" in caplog.text
        assert len(prepare(None, columns, loss_type="pairwise")) == 2  # two pairs are known
        assert len(prepare(None, columns, loss_type="scalar")) == 2

    def test_scores_all_tied_give_no_pair(self):
        columns = three("scores", [1.0, 1.0, 1.0]), three("scores", [1.0, 1.0, 2.0])
        both = {key: columns[0][key] + columns[1][key] for key in columns[0]}
        assert prepare(None, both, loss_type="pairwise")["scores"][:] == [[1.0, 1.0, 2.0]]

    def test_only_the_judgement_used_stays_where_another_could_be_taken_for_it(self):
        columns = {**three("label", 1), "scores": [[1.0, 2.0]]}
        assert "scores" not in prepare(None, columns, loss_type="pairwise").column_names
        assert "scores" in prepare(None, columns, loss_type="best_of_k").column_names


class TestIdenticalCandidates:
    @pytest.mark.parametrize(
        ("judgement", "value", "expected"),
        [("label", 2, 0), ("label", 3, 2), ("ranking", [2, 1, 0, 3], [0, 1, 2]), ("scores", [1, 5, 3, 0], [2, 5, 0])],
    )
    def test_copies_are_merged(self, judgement, value, expected):
        rows = three(judgement, value, n=10)
        rows["completion_ids"] = [[[3], [4, n], [30 + n], [6]] for n in range(10)]
        rows["completion_ids"][0][2] = [3]
        row = prepare(None, rows, loss_type={"ranking": "ranking", "scores": "scalar"}.get(judgement, "best_of_k"))[0]
        assert row["completion_ids"] == [[3], [4, 0], [6]] and row[judgement] == expected

    def test_record_without_two_different_candidates_is_dropped_and_counted(self, caplog):
        rows = three("label", 1, n=10)
        rows["completion_ids"][3] = [[7], [7]]
        with caplog.at_level(logging.WARNING):
            assert len(prepare(None, rows)) == 9
        assert "dropped identical completions from 1 of 10 records" in caplog.text

    def test_more_than_a_tenth_is_refused(self):
        rows = three("label", 1, n=9)
        rows["completion_ids"][3] = [[7], [7], [8]]
        with pytest.raises(ValueError, match=r"1 of 9 records of `train` hold identical completions"):
            prepare(None, rows)


class TestLength:
    def test_long_records_are_dropped_and_counted(self, caplog):
        rows = three("label", 1, n=2)
        rows["completion_ids"][0] = [[3], [4, 5, 6]]
        with caplog.at_level(logging.WARNING):
            assert len(prepare(None, rows, max_length=4)) == 1
        assert "dropped 1 of 2 records (1 too long; max_length 4)" in caplog.text
        assert len(prepare(None, rows, max_length=5)) == 2

    def test_nothing_left_is_refused(self):
        with pytest.raises(ValueError, match=r"No record of `eval` is left: 1 records, 1 too long .* raise"):
            prepare(None, three("label", 1), max_length=3, name="eval")
        with pytest.raises(ValueError, match="`train` has no records"):
            prepare_preferences(Dataset.from_dict(three("label", 1)).select([]), None)

    def test_records_beyond_the_context_are_refused(self):
        with pytest.raises(ValueError, match="Row 0 of `train` has 4 tokens, the model reads 3; lower `max_length`"):
            prepare(None, three("label", 1), context_limit=3)


class TestRefusedRecords:
    @pytest.mark.parametrize(
        ("judgement", "value", "message"),
        [
            ("label", 3, "Row 1 of `train`: `label` is 3, but with 3 completions it is in 0..2"),
            ("label", -1, "`label` is -1"),
            ("label", None, "`label` is None"),
            ("ranking", [0, 1, 1], r"`ranking` is \[0, 1, 1\], but with 3 completions it lists 0..2 once each"),
            ("ranking", [0, 1], r"`ranking` is \[0, 1\]"),
            ("ranking", [1, 2, 3], r"`ranking` is \[1, 2, 3\]"),
            ("scores", [0.5, 1.0], r"`scores` is \[0.5, 1.0\], but 3 completions need 3 finite numbers"),
            ("scores", [0.5, 1.0, float("nan")], "`scores` is"),
        ],
    )
    def test_bad_judgement_is_named(self, judgement, value, message):
        good = {"label": 0, "ranking": [0, 1, 2], "scores": [1.0, 2.0, 3.0]}[judgement]
        rows = {**three(judgement, good, n=2), judgement: [good, value]}
        with pytest.raises(ValueError, match=message):
            prepare(None, rows)

    @pytest.mark.parametrize(
        ("prompt", "completions", "message"),
        [
            ("she", [" saw"], "Row 0 of `train`: `completions` holds 1; a choice needs a list of at least 2"),
            ("she", None, "`completions` holds None"),
            ("she", [" saw", ""], "completion 1 is ''; give non-empty text or chat messages"),
            ("she", [None, " saw"], "completion 0 is None"),
            ("", [" saw", " was"], "`prompt` is ''"),
        ],
    )
    def test_bad_text_is_named(self, tokenizer, prompt, completions, message):
        with pytest.raises(ValueError, match=message):
            prepare(tokenizer, {"prompt": [prompt], "completions": [completions], "label": [0]})

    def test_non_string_text_is_named(self, tokenizer):
        with pytest.raises(ValueError, match="completion 0 is 5"):
            prepare(tokenizer, {"prompt": ["she"], "completions": [[5, 6]], "label": [0]})

    def test_chat_with_an_empty_message_is_named(self, chat_tokenizer):
        columns = {"prompt": [user("hi")], "completions": [[assistant("good"), assistant("")]], "label": [0]}
        with pytest.raises(ValueError, match="Row 0 of `train`: completion 1 is"):
            prepare(chat_tokenizer, columns)

    def test_mixed_text_and_chat_names_the_row(self, chat_tokenizer):
        columns = {"prompt": [user("hi")], "completions": [["good", "bad"]], "label": [0]}
        with pytest.raises(ValueError, match="Row 0 of `train`: `prompt` is a list and its completion a str"):
            prepare(chat_tokenizer, columns)

    def test_completion_without_tokens(self):
        with pytest.raises(ValueError, match="completion 1 has no tokens"):
            prepare(None, {"prompt_ids": [[1]], "completion_ids": [[[2], []]], "label": [0]})

    @pytest.mark.parametrize(
        ("columns", "loss_type", "message"),
        [
            ({"text": ["a"]}, "best_of_k", r"`train` has the columns \['text'\]; give `prompt` and `completions`"),
            ({"prompt_ids": [[1]], "completion_ids": [[[1], [2]]]}, "best_of_k", "needs `label` or `ranking` or"),
            (three("label", 1), "ranking", "`loss_type='ranking'` needs `ranking` or `scores`"),
            ({"chosen": ["a"], "rejected": ["b"]}, "scalar", "which `loss_type='scalar'` cannot use"),
            ({**three("ranking", [0, 1, 2]), "margin": [1.0]}, "ranking", "`margin`, which `loss_type='ranking'`"),
            ({**three("label", 1), "margin": [None]}, "best_of_k", "Row 0 of `train`: `margin` is None"),
        ],
    )  # fmt: skip
    def test_missing_or_unusable_columns(self, columns, loss_type, message):
        with pytest.raises(ValueError, match=message):
            prepare(None, columns, loss_type=loss_type)
