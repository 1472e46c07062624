"""What queries are cut from: passages of books, and the recipes' hub data in the formats that they have there."""

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trl_ziegler.experiments import laptop
from trl_ziegler.experiments.arguments import StyleArguments, parse_recipe_arguments
from trl_ziegler.experiments.passages import AT_ONCE, PASSAGE, cut_queries, passages_of
from trl_ziegler.experiments.style import StyleExperiment
from trl_ziegler.experiments.worlds import FileWorld
from trl_ziegler.tasks import BOOKS, Task

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
SCALES = ["gpt2-124m", "paper-774m"]
SPACED = "usually , he would be tearing around the old house , looking for a good cat . "
"""A sentence as the hub's `bookcorpus` has it: in lower case, its stop apart from the last word."""


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def bpe(tokenizer) -> PreTrainedTokenizerFast:
    """`tokenizer` with one more token, a stop after a space, which GPT-2's has too: 764, where "." is 13."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"]["Ġ."] = len(tokenizer)
    content["model"]["merges"].append(["Ġ", "."])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|endoftext|>")


def book(seed: int) -> str:
    """As PG-19 has it: a title page, then paragraphs in lines of a fixed width, parted by empty lines."""
    wrapped = []
    for paragraph in laptop.passages(40, seed, "train"):
        words = paragraph.split()
        wrapped.append("\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)))
    return "\n\n\n".join(["Produced by Nobody\n\n\n\n\nA NOVEL\n\nBy A. Writer", *wrapped]) + "\n"


@pytest.fixture
def pg19(tmp_path) -> Path:
    """Parquet files with the columns of `emozilla/pg19`."""
    columns = {
        "short_book_title": [f"Novel {i}" for i in range(20)],
        "publication_date": [1850 + i for i in range(20)],
        "url": [f"http://www.gutenberg.org/ebooks/{i}" for i in range(20)],
        "text": [book(i) for i in range(20)],
    }
    (tmp_path / "pg19" / "data").mkdir(parents=True)
    Dataset.from_dict(columns).to_parquet(tmp_path / "pg19" / "data" / "train-00000-of-00001.parquet")
    return tmp_path / "pg19"


@pytest.fixture
def amazon_polarity(tmp_path) -> Path:
    """Parquet files and configuration of `fancyzhx/amazon_polarity`."""
    features = Features(
        {"label": ClassLabel(names=["negative", "positive"]), "title": Value("string"), "content": Value("string")}
    )
    rows = {
        "label": [i % 2 for i in range(20)],
        "title": ["Title"] * 20,
        "content": [f"review {i}" for i in range(20)],
    }
    folder = tmp_path / "polarity"
    (folder / "amazon_polarity").mkdir(parents=True)
    for split in ("train", "test"):
        Dataset.from_dict(rows, features).to_parquet(folder / "amazon_polarity" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: amazon_polarity\n  data_files:\n  - split: train\n"
        "    path: amazon_polarity/train-*\n  - split: test\n    path: amazon_polarity/test-*\n  default: true\n---\n"
    )
    return folder


def arguments(task: str, scale: str, *flags: str) -> StyleArguments:
    return parse_recipe_arguments(StyleArguments, CONFIGS / task / f"{scale}.yaml", flags)[0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("task", ["sentiment", "descriptiveness"])
def test_books_in_the_hubs_format_give_the_queries_that_a_recipe_asks_for(bpe, pg19, task, scale):
    args = arguments(task, scale, "--documents", str(pg19))
    train, test = (FileWorld(args).documents(split) for split in ("train", "test"))
    books = 18  # of 20, in the training part
    assert books < len(train) <= books * args.passages_per_document and test and not set(train) & set(test)
    assert all(len(text) >= PASSAGE and "\n" not in text for text in train)
    rule = BOOKS.bind(bpe)
    queries = [query for text in train if (query := rule.query(bpe(text)["input_ids"]))]
    assert all(32 <= len(query) <= 64 and bpe.decode(query).endswith(".") for query in queries)
    assert cut_queries(train, rule, bpe, len(queries), "train") == queries
    assert len(queries) / books * 25_742 > args.num_policy_queries  # nine tenths of the real books


@pytest.mark.parametrize("scale", SCALES)
def test_reviews_in_the_hubs_format_are_read(amazon_polarity, scale):
    world = FileWorld(arguments("sentiment", scale, "--reviews", str(amazon_polarity)))
    rows = world.reviews("train") + world.reviews("test")
    assert sorted(rows, key=lambda row: int(row["text"].split()[1])) == [
        {"text": f"review {i}", "label": i % 2} for i in range(20)
    ]
    world.args.reviews_column = "text"
    with pytest.raises(ValueError, match=r"it needs `text` and `label`. Name the text's in `reviews_column`"):
        world.reviews("train")


def test_passages_lie_at_even_distances_and_leave_a_title_page_out():
    text = "\n\n".join(["A NOVEL", *(f"{i}\nwords. " + "x" * PASSAGE for i in range(12))])
    assert [passage.split()[0] for passage in passages_of(text, 3)] == ["2", "6", "10"]
    assert passages_of(text, 3)[0] == "2 words. " + "x" * PASSAGE
    assert len(passages_of(text, 100)) == 12 and passages_of(text, 100)[0].startswith("A NOVEL 0 words.")


def test_short_paragraphs_are_joined_and_a_short_end_is_left_out():
    assert [len(passage) for passage in passages_of("\r\n \r\n".join(["x" * 200] * 7), 9)] == [602, 602]
    assert passages_of("x" * (PASSAGE - 1), 9) == []


def test_queries_are_the_first_ones_and_no_further_documents_are_read(bpe):
    task = Task("t", 4, query_start=".", query_end=".", query_length=8).bind(bpe)
    documents = ["no stop"] * (AT_ONCE - 1) + ["a. the cat.", "b. the dog.", "c. he."] + [None] * AT_ONCE
    queries = cut_queries(documents[: AT_ONCE + 2], task, bpe, 2, "train")
    assert bpe.batch_decode(queries) == [" the cat.", " the dog."]
    assert bpe.batch_decode(cut_queries(documents, task, bpe, 1, "train")) == [" the cat."]
    with pytest.raises(ValueError, match=r"The test documents give 3 queries, 9 are needed; .*`passages_per_d"):
        cut_queries(documents[: AT_ONCE + 2], task, bpe, 9, "test")


def test_documents_without_queries_are_refused_by_a_sentence(bpe):
    sentence = (
        r"None of the first 4 train documents gives a query, which has at least 32 tokens, starts after the first "
        r"token '\.' \(id 13\), ends with the last '\.' \(id 13\) of the next 64; they read like 'usually , he .*'"
    )
    with pytest.raises(ValueError, match=sentence):
        cut_queries([SPACED * 9] * 4, BOOKS.bind(bpe), bpe, 1, "train")


def test_a_run_on_documents_without_queries_ends_before_anything_is_trained(tmp_path, bpe, make_causal_lm):
    """After hours of them the stage `collect` would end the run."""
    make_causal_lm().save_pretrained(tmp_path / "model")
    bpe.save_pretrained(tmp_path / "model")
    (tmp_path / "books.jsonl").write_text(f"{json.dumps({'text': SPACED})}\n" * 20)
    own = {"model": str(tmp_path / "model"), "documents": str(tmp_path / "books.jsonl"), "reviews": "not read yet"}
    experiment = StyleExperiment("sentiment", StyleArguments(**own, sft={"bf16": False}), tmp_path)
    for stage in (experiment.classifier, experiment.sft):
        with pytest.raises(ValueError, match="None of the first 18 train documents gives a query"):
            stage(tmp_path)
