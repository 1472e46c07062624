"""Posts, articles and judgements come alike from every layout and place, and the rows used are counted."""

import gzip
import json

import pytest
from datasets import Dataset

from trl_ziegler import save_openai_labels
from trl_ziegler.experiments.summaries_data import (
    describe_counts,
    first_of_each_document,
    is_held_out,
    load_comparisons,
    load_ratings,
    load_summaries,
    select_summaries,
)

POSTS = [
    {"id": "t3_a", "subreddit": "cats", "title": "Cat", "post": "My cat\n\n\n\nsleeps.", "summary": " It sleeps. "},
    {"id": "t3_b", "subreddit": "dogs", "title": "Dog", "post": "Dog.\n\nPOST: barks.", "summary": "It barks."},
]
CLEAN_POSTS = [
    {"id": "t3_a", "document": "My cat\n\nsleeps.", "summary": "It sleeps.", "title": "Cat", "subreddit": "cats"},
    {
        "id": "t3_b",
        "document": "Dog.\n\nPOST: barks.",
        "summary": "It barks.",
        "title": "Dog",
        "subreddit": "dogs",
    },
]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def place(tmp_path):
    """`place(rows, kind="jsonl", split="train")`: where to find rows; a folder has a file for each split."""

    def write(rows, kind="jsonl", split="train"):
        path = tmp_path / f"{split}.{kind}"
        if kind == "folder":
            path = tmp_path / "like_the_hub"
            path.mkdir(exist_ok=True)
            Dataset.from_list(rows).to_parquet(path / f"{split}.parquet")
        elif kind in ("csv", "parquet"):
            getattr(Dataset.from_list(rows), f"to_{kind}")(path)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        return str(path)

    return write


# ---- Summaries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet", "folder"])
def test_posts_come_alike_from_every_kind_of_place(place, kind):
    assert load_summaries(place(POSTS, kind)) == CLEAN_POSTS


def test_posts_stay_as_they_are_unless_cleaned(place):
    rows = load_summaries(place(POSTS), clean=False)
    assert [row["document"] for row in rows] == [row["post"] for row in POSTS]
    assert [row["id"] for row in rows] == ["t3_a", "t3_b"]


def test_prompts_of_the_hub_are_taken_apart(place):
    """The columns of `trl-lib/tldr`, which has no ids."""
    rows = [
        {
            "prompt": f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}\n\nTL;DR:",
            "completion": " " + row["summary"],
        }
        for row in POSTS
    ]
    place(rows[:1], "folder", "validation")
    found = load_summaries(place(rows, "folder"))
    assert [{**row, "id": ""} for row in found] == [{**row, "id": ""} for row in CLEAN_POSTS]
    assert load_summaries(place(rows, "folder"), split="validation") == found[:1]


@pytest.mark.parametrize("prompt", ["Summarize: c", "SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c\n\nTL;DR: so", "POST: c"])
def test_prompts_of_another_kind_are_refused(place, prompt):
    good = {"prompt": "SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: c\n\nTL;DR:", "completion": "d"}
    with pytest.raises(ValueError, match=r"row 1: `prompt` is no TL;DR prompt .* rename the columns"):
        load_summaries(place([good, {"prompt": prompt, "completion": "d"}]))


def test_articles_of_the_hub_are_cleaned_and_their_highlights_joined(place):
    """The columns of `cnn_dailymail`."""
    rows = [{"article": "(CNN)Rain fell. So did snow.", "highlights": "Rain fell\nSnow too .", "id": "0f3a"}]
    assert load_summaries(place(rows, "folder")) == [
        {"id": "0f3a", "document": "Rain fell. So did snow.", "summary": "Rain fell. Snow too ."}
    ]


def test_the_corpus_of_posts_and_ones_own_texts_are_read_too(place):
    assert load_summaries(place([{"content": "a\n\n\n\nb", "summary": "c", "id": 7}])) == [
        {"id": "7", "document": "a\n\nb", "summary": "c"}
    ]
    own = {"id": "x", "document": "By me\n\n\n\n(CNN)a", "summary": "c"}
    assert load_summaries(place([own], split="own")) == [own]


def test_rows_without_an_id_get_one_from_their_document(place):
    rows = [{"article": text, "highlights": "c", "id": ""} for text in ("a", "b", "a")]
    ids = [row["id"] for row in load_summaries(place(rows))]
    assert ids[0] == ids[2] != ids[1] and "" not in ids
    bare = load_summaries(place([{"document": "a", "summary": "c"}], split="bare"))
    assert bare[0]["id"] == ids[0]


def test_missing_texts_are_kept_for_the_count_and_other_values_refused(place):
    assert load_summaries(place([{"post": None, "summary": "c"}]))[0]["document"] == ""
    with pytest.raises(ValueError, match=r"row 0: `summary` is 3, which is no text"):
        load_summaries(place([{"post": "a", "summary": 3}], split="numbers"))


def test_unknown_columns_are_named_with_the_known_ones(place):
    with pytest.raises(ValueError, match=r"has the columns \['text'\]; rename them .* `post` and `summary`"):
        load_summaries(place([{"text": "a"}]))


# ---- Judgements -----------------------------------------------------------------------------------------------------

INFO = {"id": "t3_a", "post": "My cat sleeps.", "title": "Cat", "subreddit": "cats", "article": None, "site": None}
NEWS = {"id": "0f3a", "post": None, "title": "Rain", "subreddit": None, "article": "By noon rain fell.", "site": "cnn"}


def summary(text, **more):
    return {"text": text, "policy": "ref", "note": None, **more}


def test_comparisons_become_best_of_k_records(place):
    """The columns of the comparisons in `openai/summarize_from_feedback`."""
    more = {"worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 8}}
    rows = [
        {"info": INFO, "summaries": [summary(" it"), summary(" it sleeps", policy="sup4")], "choice": 1, **more},
        {"info": NEWS, "summaries": [summary("Rain."), summary("Snow.")], "choice": 0, **more},
    ]
    found = load_comparisons(place(rows, "folder")).to_list()
    assert found[0] == {
        "id": "t3_a",
        "document": "My cat sleeps.",
        "title": "Cat",
        "subreddit": "cats",
        "completions": [" it", " it sleeps"],
        "label": 1,
        "policies": ["ref", "sup4"],
        "worker": "w",
    }
    assert (found[1]["document"], found[1]["subreddit"], found[1]["label"]) == ("By noon rain fell.", None, 0)
    assert load_comparisons(place(rows, split="lines")).to_list() == found
    assert load_comparisons(place(rows[::-1], split="articles_first")).to_list() == found[::-1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"summaries": [summary("a"), summary("b")], "choice": 2}, "row 0: `choice` is 2, .* 0..1"),
        ({"summaries": [summary("a"), summary("b")], "choice": -1}, "row 0: `choice` is -1"),
        ({"summaries": [summary("a")], "choice": 0}, "row 0: `summaries` is .* needs 2"),
        ({"summary": summary("a")}, r"comparisons also have \['choice', 'summaries'\]"),
    ],
)
def test_wrong_comparisons_are_named(place, row, message):
    with pytest.raises(ValueError, match=message):
        load_comparisons(place([{"info": INFO, **row}]))


@pytest.mark.parametrize("name", ["labels.json", "labels.json.gz"])
def test_label_files_are_read_as_ids(tmp_path, name):
    labels = Dataset.from_dict({"prompt_ids": [[1, 2], [3]], "completion_ids": [[[4], [5, 6]]] * 2, "label": [1, 0]})
    save_openai_labels(labels, tmp_path / name, query_length=3, response_length=2)
    assert load_comparisons(str(tmp_path / name)).to_list() == labels.to_list()


def test_a_label_file_cut_in_half_is_refused_as_such(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text('[{"query": [1], "sample0": [1], "sample1": [2], "best": 0}, {"query"')
    with pytest.raises(ValueError, match="may have been cut in half"):
        load_comparisons(str(file))


def test_ratings_keep_the_axes_that_were_rated(place):
    """The columns of the axis evaluations in `openai/summarize_from_feedback`."""
    axes = {"overall": 3, "accuracy": 5, "coverage": None, "coherence": 2}
    rows = [
        {"info": INFO, "split": "valid2", "summary": summary("It sleeps.", axes=axes), "worker": "w", "batch": "b"}
    ]
    article = {**rows[0], "info": NEWS}
    post, other = load_ratings(place([*rows, article], "folder", "validation"))
    assert post == {
        "id": "t3_a",
        "document": "My cat sleeps.",
        "title": "Cat",
        "subreddit": "cats",
        "summary": "It sleeps.",
        "policy": "ref",
        "axes": {"overall": 3, "accuracy": 5, "coherence": 2},
        "worker": "w",
    }
    assert other["document"] == "By noon rain fell." and "subreddit" not in other
    with pytest.raises(ValueError, match=r"ratings also have \['summary'\]"):
        load_ratings(place([{"info": INFO}], split="other"))


# ---- Selection ------------------------------------------------------------------------------------------------------


def row(number: int, tokens: int = 30, document: str | None = None) -> dict:
    """A row whose summary has exactly `tokens` tokens: one a word."""
    text = f"document {number}" if document is None else document
    return {"id": f"id{number}", "document": text, "summary": " cat" * tokens}


def kept_ids(rows, tokenizer, **options) -> list[str]:
    return [each["id"] for each in select_summaries(rows, tokenizer, **{"part": "train", **options})[0]]


def test_summaries_of_24_to_48_tokens_are_kept(tokenizer):
    rows = [row(i, tokens) for i, tokens in enumerate((23, 24, 25, 47, 48, 49))]
    assert kept_ids(rows, tokenizer, held_out_share=0.0) == ["id1", "id2", "id3", "id4"]
    assert kept_ids(rows, tokenizer, held_out_share=0.0, summary_tokens=(25, 25)) == ["id2"]
    assert len(kept_ids(rows, tokenizer, held_out_share=0.0, summary_tokens=None)) == 6


def test_every_row_left_out_is_counted_once(tokenizer, capsys):
    bad = [
        row(900, 23),
        row(901, 1),
        row(902, 60),
        row(903, document=" "),
        row(904, 0),
        row(905, document="document 3"),
    ]
    rows = [*bad, *(row(i) for i in range(200))]
    train, counts = select_summaries(rows, tokenizer, part="train")
    held_out, other_counts = select_summaries(rows, tokenizer, part="validation")
    assert len(train) + len(held_out) == 200 and 2 <= len(held_out) <= 25
    assert counts == {
        "read": 206,
        "empty": 2,
        "duplicates": 1,
        "too short": 2,
        "too long": 1,
        "other part": len(held_out),
        "kept": len(train),
    }
    assert (other_counts["other part"], other_counts["kept"]) == (len(train), len(held_out))
    assert counts["read"] == sum(counts.values()) - counts["read"]
    assert describe_counts("train", counts) in capsys.readouterr().out
    assert describe_counts("train", counts) == (
        f"Summaries for train: {len(train)} of 206 rows (2 empty, 1 duplicates, 2 too short, 1 too long, "
        f"{len(held_out)} other part)."
    )


def test_parts_depend_on_the_ids_alone(tokenizer):
    rows = [row(i) for i in range(300)]
    parts = {part: kept_ids(rows, tokenizer, part=part) for part in ("train", "validation")}
    assert not set(parts["train"]) & set(parts["validation"])
    for part, ids in parts.items():
        assert kept_ids(rows[::-1], tokenizer, part=part) == ids[::-1]
        assert kept_ids(rows[:150], tokenizer, part=part) == [i for i in ids if int(i[2:]) < 150]


def test_hash_of_an_id_never_changes():
    """SHA-256 of "t3_20" begins with 0x0bcb, 4.6 % of the way to the end, that of "t3_1" with 0xa736, 65.3 %."""
    assert is_held_out("t3_20") and not is_held_out("t3_1")
    assert is_held_out("t3_1", 0.66) and not is_held_out("t3_1", 0.65)
    share = sum(is_held_out(f"t3_{i}") for i in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.005)
    assert not is_held_out("t3_1", 0.0) and is_held_out("t3_1", 1.0)


def test_of_duplicates_the_same_one_stays_in_any_order():
    rows = [row(2, document="a"), row(1, document="a"), row(3, document="b"), {**row(1, 5), "document": "a"}]
    assert first_of_each_document(rows) == [False, False, True, True]
    assert first_of_each_document(rows[::-1]) == [True, True, False, False]


def test_an_unknown_part_and_an_empty_rest_are_refused(tokenizer):
    with pytest.raises(ValueError, match="`part` is 'test'; give 'train' or 'validation'"):
        select_summaries([row(1)], tokenizer, part="test")
    with pytest.raises(ValueError, match=r"No row is left: .* 0 of 1 rows .*1 too short"):
        select_summaries([row(1, 3)], tokenizer, part="train")
