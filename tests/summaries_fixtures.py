"""Small summarization runs as fixtures, shared by the tests of the experiment; loaded through `pytest_plugins`."""

import json

import pytest

from trl_ziegler.experiments.arguments import SummaryArguments
from trl_ziegler.experiments.summaries import SummaryExperiment


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache" / "metrics")


@pytest.fixture
def rows_of():
    """`rows_of(60, title="x")`: documents of two lines with a summary each; one in twenty or fewer is held out."""
    verbs, things = ("saw", "loved", "hated", "found"), ("cat", "dog", "house", "garden")

    def make(count, **columns):
        rows = []
        for i in range(count):
            verb, thing = verbs[i % 4], things[i // 4 % 4]
            document = f"we {verb} the old {thing} number {i}\nand it was cold. {'very ' * (i % 5)}"
            rows.append({"id": f"row {i}", "document": document, "summary": f"they {verb} a {thing}.", **columns})
        return rows

    return make


@pytest.fixture
def own_files(tmp_path, make_causal_lm, tokenizer):
    """`own_files(rows)`: arguments of a run on these documents with a tiny random model."""

    def write(rows):
        make_causal_lm().save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"model": str(tmp_path / "model"), "documents": str(tmp_path / "documents.jsonl")}

    return write


@pytest.fixture
def make_experiment(tmp_path):
    """`make_experiment("tldr", **arguments)`: an experiment whose run directory does not exist yet."""
    return lambda name="tldr", **arguments: SummaryExperiment(name, SummaryArguments(**arguments), tmp_path / "run")
