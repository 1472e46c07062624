"""Rows load from every kind of place by one argument."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from trl_ziegler.experiments.data import load_rows

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
