"""OpenAI's label files."""

import gzip
import json

import pytest
from datasets import Dataset

from trl_ziegler.openai_labels import load_openai_labels, save_openai_labels
from trl_ziegler.preference_data import prepare_preferences

PAD = 50259


def label_record(best=1, **changes):
    record = {
        "query": [7, 8, PAD],
        "sample0": [1, 13, PAD],
        "sample1": [2, 3, 4],
        "sample2": [5, PAD, PAD],
        "best": best,
    }
    return {**record, **changes}


def without(record, key):
    return {k: v for k, v in record.items() if k != key}


class TestOpenAILabels:
    def test_padding_is_stripped_and_file_order_kept(self, tmp_path):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps([label_record(1), label_record(0, query=[9, PAD, PAD])]))
        dataset = load_openai_labels(path)
        assert dataset[0] == {"prompt_ids": [7, 8], "completion_ids": [[1, 13], [2, 3, 4], [5]], "label": 1}
        assert dataset["prompt_ids"][:] == [[7, 8], [9]] and dataset["label"][:] == [1, 0]
        assert prepare_preferences(dataset, None).to_dict() == dataset.to_dict()

    @pytest.mark.parametrize("name", ["labels.json", "labels.json.gz"])
    def test_round_trip(self, tmp_path, name):
        source = tmp_path / "source.jsonl"
        source.write_text("\n".join(json.dumps(label_record(best)) for best in (0, 1, 2)))
        dataset = load_openai_labels(source)
        save_openai_labels(dataset, tmp_path / name, query_length=3, response_length=3)
        assert load_openai_labels(tmp_path / name).to_dict() == dataset.to_dict()
        data = (tmp_path / name).read_bytes()
        records = json.loads(gzip.decompress(data) if name.endswith("gz") else data)
        assert records == [label_record(best) for best in (0, 1, 2)]
        assert {p.name for p in tmp_path.iterdir()} == {"source.jsonl", name}  # no half-written file stays

    def test_saving_fetches_each_record_once(self, tmp_path, monkeypatch):
        rows = {"prompt_ids": [[1]] * 9, "completion_ids": [[[2], [3]]] * 9, "label": [0] * 9}
        fetched, fetch = [], Dataset.__getitem__
        monkeypatch.setattr(Dataset, "__getitem__", lambda self, key: fetched.append(key) or fetch(self, key))
        save_openai_labels(Dataset.from_dict(rows), tmp_path / "x.json", query_length=1, response_length=1)
        assert len(fetched) <= 1
        assert len(json.loads((tmp_path / "x.json").read_text())) == 9

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (label_record(best=3), "record 1: `best` is 3, but with 3 samples it is in 0..2"),
            (label_record(best=None), "`best` is None"),
            (label_record(sample1=[2, 3]), "record 1: `sample1` is 2 wide, in record 0 it is 3"),
            (label_record(query=[7, 8, 9, 10]), "`query` is 4 wide"),
            (without(label_record(), "sample2"), "`sample2` is None wide"),
            (label_record(sample3=[1, 2, 3]), "`sample3` is one more than in record 0"),
            (label_record(sample0=[PAD] * 3), "`sample0` holds no token but the padding id 50259"),
        ],
    )
    def test_bad_record_is_named(self, tmp_path, record, message):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps([label_record(), record]))
        with pytest.raises(ValueError, match=message):
            load_openai_labels(path)

    @pytest.mark.parametrize("record", [without(label_record(), "query"), {"query": [1], "sample0": [1], "best": 0}])
    def test_file_of_another_kind(self, tmp_path, record):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps([record]))
        with pytest.raises(ValueError, match="a label file has `query`, `sample0`, `sample1`"):
            load_openai_labels(path)

    @pytest.mark.parametrize("name", ["labels.json", "labels.jsonl", "labels.json.gz"])
    def test_file_cut_in_half(self, tmp_path, name):
        records = [label_record()] * 3
        text = "\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(records)
        data = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"is not complete JSON .* cut in half"):
            load_openai_labels(tmp_path / name)

    def test_empty_file(self, tmp_path):
        (tmp_path / "labels.json").write_text("[]")
        with pytest.raises(ValueError, match="holds no records"):
            load_openai_labels(tmp_path / "labels.json")

    def test_saving_refuses_what_does_not_fit(self, tmp_path):
        dataset = Dataset.from_dict({"prompt_ids": [[1, 2]], "completion_ids": [[[3], [4, 5]]], "label": [1]})
        with pytest.raises(ValueError, match="Record 0: `prompt_ids` has 2 tokens, more than the width 1"):
            save_openai_labels(dataset, tmp_path / "x.json", query_length=1, response_length=3)
        mixed = Dataset.from_dict(
            {"prompt_ids": [[1], [1]], "completion_ids": [[[1], [2]], [[1], [2], [3]]], "label": [0, 0]}
        )
        with pytest.raises(ValueError, match="Record 1 has 3 completions, the first one 2"):
            save_openai_labels(mixed, tmp_path / "x.json", query_length=1, response_length=1)
