"""Rows load from every kind of place by one argument."""

import gzip
import json
import re

import pytest
from datasets import Dataset, DatasetDict

from trl_ziegler.experiments.data import load_rows, split_configuration

ROWS = [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 0}]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("prompt,label\na,1\nb,0\n")
    elif kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        saved = Dataset.from_list(ROWS)
        (DatasetDict({"train": saved}) if kind == "dict" else saved).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "saved", "dict"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    assert load_rows(write(tmp_path, kind)).to_list() == ROWS


def test_a_folder_of_files_is_a_dataset_as_on_the_hub(tmp_path):
    folder = tmp_path / "like_the_hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load_rows(str(folder)).to_list() == ROWS


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.jsonl does not exist; give a file"):
        load_rows(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match=r"has the splits \['train'\], not 'test'"):
        load_rows(write(tmp_path, "dict"), split="test")


def test_a_file_cut_in_half_is_named(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"prompt": "b", "la')
    with pytest.raises(ValueError, match=r"cut\.jsonl cannot be read as json \(.*\); it may have been cut in half"):
        load_rows(str(path))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "rows.tsv",
            b"a\tb",
            "is a file of a kind that is not read; give .json, .jsonl, .csv, .parquet, .txt, each also",
        ),
        ("rows.xlsx", b"PK", "is a file of a kind that is not read"),
        ("rows", b"a", "is a file of a kind that is not read"),
        ("rows.jsonl", b"", "is empty; check how it was written."),
        ("rows.csv", b"", "is empty; check how it was written."),
        ("rows.jsonl", b"\n\n", "cannot be read as json ("),
        ("rows.jsonl.gz", gzip.compress(b""), "cannot be read as json ("),
        ("rows.jsonl", '{"a": "\xe9"}'.encode("latin-1"), "is not in UTF-8 ("),
        ("rows.csv", "a\n\xe9".encode("latin-1"), "is not in UTF-8 ("),
        ("rows.txt", "\xe9a".encode("latin-1"), "is not in UTF-8 ("),
    ],
)
def test_files_that_hold_no_rows_are_named(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {sentence}")):
        load_rows(str(path))


def test_a_folder_may_be_called_as_a_file(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    (tmp_path / "rows.jsonl" / "train.json").write_text(json.dumps(ROWS))
    assert load_rows(str(tmp_path / "rows.jsonl")).to_list() == ROWS


@pytest.fixture
def two_configurations(tmp_path):
    """A folder laid out like a dataset of the hub that has the configurations `one` and `2.0`."""
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: first.jsonl\n- config_name: '2.0'\n"
        "  data_files: second.jsonl\n---\n"
    )
    for name, row in zip(("first", "second"), ROWS, strict=True):
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_one_of_several_configurations_follows_a_colon(two_configurations):
    assert load_rows(f"{two_configurations}:one").to_list() == ROWS[:1]
    assert load_rows(f"{two_configurations}:2.0").to_list() == ROWS[1:]
    with pytest.raises(ValueError, match=r"one"):  # the library names those there are
        load_rows(str(two_configurations))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("abisee/cnn_dailymail:3.0.0", ("abisee/cnn_dailymail", "3.0.0")),
        ("gsm8k:main", ("gsm8k", "main")),
        ("trl-lib/tldr", ("trl-lib/tldr", None)),
        ("C:rows", ("C:rows", None)),
        (r"C:\rows\mine", (r"C:\rows\mine", None)),
        ("C:/rows/mine", ("C:/rows/mine", None)),
        ("https://example.org/rows", ("https://example.org/rows", None)),
        ("https://example.org:8080/rows", ("https://example.org:8080/rows", None)),
        ("hf://datasets/a/b", ("hf://datasets/a/b", None)),
        ("/nowhere/rows:one", ("/nowhere/rows:one", None)),
        ("a/b:", ("a/b:", None)),
    ],
)
def test_other_colons_are_left_alone(source, parts):
    assert split_configuration(source) == parts


def test_a_folder_with_a_colon_in_its_name_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows:old").mkdir()
    (tmp_path / "rows").mkdir()
    assert split_configuration("rows:old") == ("rows:old", None)
    assert split_configuration("rows:new") == ("rows", "new")
    assert split_configuration(str(tmp_path / "rows:new")) == (str(tmp_path / "rows"), "new")
