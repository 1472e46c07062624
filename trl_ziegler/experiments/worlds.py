"""Where an experiment's texts and start model come from: the embedded laptop world, or one's own files and models."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .._files import found_model
from . import laptop
from .arguments import StyleArguments, section_config
from .data import load_rows
from .experiment import load_model
from .passages import passages_of

HELD_OUT_SHARE = 0.1
NO_JUDGE = "`reviews` is missing; give labelled reviews, or a ready classifier in `judge_model`."
DOCUMENT_SEED = 0
"""The order of documents does not depend on the run's seed (openai/lm-human-preferences, datasets.py)."""


@dataclass
class WorldConfig:
    """Sizes of the laptop world: texts generated, and the tokenizer's vocabulary.

    Args:
        passages: Passages the start model is trained on and training queries are cut from.
        eval_passages: Held-out passages for evaluation queries.
        reviews: Labelled reviews for the classifier.
        eval_reviews: Held-out reviews for its accuracy.
        vocab_size: Most tokens of the tokenizer.
        width: Hidden size of the start model.
    """

    passages: int = 10_000
    eval_passages: int = 2_000
    reviews: int = 6_000
    eval_reviews: int = 1_000
    vocab_size: int = 900
    width: int = 64


class World(Protocol):
    """What the stages ask of a source of texts and models. `split` is "train" or "test"."""

    @property
    def truth(self) -> Callable[[str, str], float] | None:
        """The generator's own verdict on a completion for a task, where there is one."""

    def documents(self, split: str) -> list[str]:
        """Texts that queries are cut from."""

    def reviews(self, split: str) -> list[dict]:
        """Rows `{"text", "label"}`, label 1 for positive."""

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The language model before any training of this run, and its tokenizer."""

    def classifier(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A two-label classifier to train on the reviews, and its tokenizer."""


class LaptopWorld:
    """The embedded world: generated corpora and tiny models with fresh weights, all from one seed."""

    def __init__(self, args: StyleArguments) -> None:
        self.sizes = section_config(WorldConfig, "world", args.section("world"))
        self.seed = args.seed

    @staticmethod
    def truth(task: str, completion: str) -> float:
        """The generator's own measure of what a task asks for."""
        return {"sentiment": laptop.true_sentiment, "descriptiveness": laptop.true_vividness}[task](completion)

    def documents(self, split: str) -> list[str]:
        """Passages."""
        count = self.sizes.passages if split == "train" else self.sizes.eval_passages
        return laptop.passages(count, self.seed, split)

    def reviews(self, split: str) -> list[dict]:
        """Reviews; the test split has sentiment words that the train split lacks."""
        count = self.sizes.reviews if split == "train" else self.sizes.eval_reviews
        return laptop.reviews(count, self.seed, split)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Trained on the training texts."""
        texts = self.documents("train") + [row["text"] for row in self.reviews("train")]
        return laptop.build_tokenizer(texts, vocab_size=self.sizes.vocab_size)

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A tiny GPT-2 with fresh weights."""
        torch.manual_seed(self.seed)
        return AutoModelForCausalLM.from_config(
            laptop.lm_config(self.tokenizer, n_embd=self.sizes.width)
        ), self.tokenizer

    def classifier(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A tiny GPT-2 classifier with fresh weights."""
        torch.manual_seed(self.seed)
        config = laptop.classifier_config(self.tokenizer)
        return AutoModelForSequenceClassification.from_config(config), self.tokenizer


class FileWorld:
    """One's own model, documents and reviews, as files, saved datasets or hub ids."""

    truth = None

    def __init__(self, args: StyleArguments) -> None:
        section_config(WorldConfig, "world", args.section("world"))  # not read, yet a misspelt key is to be refused
        assert args.model is not None and args.documents is not None  # which the arguments see to
        self.args, self.model, self.source = args, args.model, args.documents

    def documents(self, split: str) -> list[str]:
        """Texts of `documents` or passages of them, in an order that no run seed changes.

        A tenth of the documents is the test split.
        """
        rows = load_rows(self.source)
        if self.args.documents_column not in rows.column_names:
            raise ValueError(
                f"`documents` has the columns {rows.column_names}, not '{self.args.documents_column}'; name the "
                "text's in `documents_column`."
            )
        texts = rows.select(part_of(list(range(len(rows))), split))[self.args.documents_column]
        if self.args.passages_per_document is None:
            return list(texts)
        # One book after the other, because all of them at once may be larger than the memory.
        passages = [passage for text in texts for passage in passages_of(text, self.args.passages_per_document)]
        random.Random(DOCUMENT_SEED).shuffle(passages)  # or the first labels would be of few books
        return passages

    def reviews(self, split: str) -> list[dict]:
        """Rows of `reviews`; a tenth of them is the test split."""
        if self.args.reviews is None:
            raise ValueError(NO_JUDGE)
        rows = load_rows(self.args.reviews)
        column = self.args.reviews_column
        if not {column, "label"} <= set(rows.column_names):
            raise ValueError(
                f"`reviews` has the columns {rows.column_names}; it needs `{column}` and `label`. Name the text's in "
                "`reviews_column`."
            )
        return part_of([{"text": row[column], "label": int(row["label"])} for row in rows], split)

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """`model`, in float32."""
        return load_model(self.model)

    def classifier(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A classifier on the trunk of `model`."""
        torch.manual_seed(self.args.seed)
        with found_model(self.model, "model") as path:
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32)
            return model, AutoTokenizer.from_pretrained(path)


def require_judge(args: StyleArguments) -> None:
    """`ValueError` where one's own model and texts lack what sentiment is judged by."""
    if args.model is not None and args.reviews is None and args.judge_model is None:
        raise ValueError(NO_JUDGE)


def part_of(rows: list, split: str) -> list:
    """The training rows, or the held-out tenth, of a list shuffled by a fixed seed."""
    rows = list(rows)
    random.Random(DOCUMENT_SEED).shuffle(rows)
    held_out = max(1, int(len(rows) * HELD_OUT_SHARE))
    return rows[held_out:] if split == "train" else rows[:held_out]


def make_world(args: StyleArguments) -> World:
    """The laptop world, or one's own files where `model` and `documents` are given."""
    return LaptopWorld(args) if args.model is None else FileWorld(args)
