"""Where a summarization's documents, summaries, start model and simulated labeller come from."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .._files import found_model
from ..labelers import ReferenceOverlap
from . import laptop
from .arguments import SummaryArguments, section_config
from .experiment import load_model
from .summaries_data import Part, Row, load_summaries, select_summaries
from .summaries_text import join_highlights

Judge = Callable[..., list[float]]
"""`f(prompts, completions, reference=...)`, a score of each completion; see `labelers.ScoreFunction`."""


@dataclass
class SummaryWorldConfig:
    """Sizes of the laptop world of posts and news.

    Args:
        documents: Documents with summaries that models are trained on and training queries are made of.
        eval_documents: Held-out ones, with sets of main facts that no other document has.
        vocab_size: Most tokens of the tokenizer.
        width: Hidden size of the start model.
        layers: Its layers.
        positions: Its longest context.
    """

    documents: int = 12_000
    eval_documents: int = 1_000
    vocab_size: int = 900
    width: int = 96
    layers: int = 2
    positions: int = 256


class SummaryWorld(Protocol):
    """What the stages ask of a source of documents and models."""

    @property
    def facts(self) -> Callable[[str], Iterable[Hashable]] | None:
        """From a text to the facts it states, where that is known."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The start model's."""

    def rows(self, part: Part) -> list[Row]:
        """Rows with `id`, `document`, `summary` and, for posts, `title` and `subreddit`."""

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The language model before any training of this run, and its tokenizer."""

    def judge(self, noise: float = 0.0) -> Judge:
        """The simulated labeller's score; without noise it is the judge of win rates."""


class LaptopSummaries:
    """Generated posts or news and a tiny model with fresh weights, all from one seed; the truth is known."""

    facts = staticmethod(laptop.facts_in)

    def __init__(self, task: str, args: SummaryArguments) -> None:
        self.task, self.seed = task, args.seed
        self.rows: Callable[[Part], list[Row]] = cache(self._rows)
        self.sizes = section_config(SummaryWorldConfig, "world", args.section("world"))

    def _rows(self, part: Part) -> list[Row]:
        """Posts, or news whose last line ends like the others: a query ends at a line's end."""
        count, split = (self.sizes.documents, "train") if part == "train" else (self.sizes.eval_documents, "test")
        if self.task == "tldr":
            rows = [
                {
                    "title": "Need some advice",
                    "subreddit": "advice",
                    "document": row["post"],
                    "summary": row["summary"],
                }
                for row in laptop.make_posts(count, self.seed, split)
            ]
        else:
            rows = [
                {"document": row["article"] + "\n", "summary": join_highlights(row["highlights"])}
                for row in laptop.make_news(count, self.seed, split)
            ]
        return [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Trained on the training texts."""
        texts = [
            text for row in self.rows("train") for text in (f"{row['document']}\n\nTL;DR:", f" {row['summary']}\n")
        ]
        return laptop.build_tokenizer(texts, vocab_size=self.sizes.vocab_size)

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A tiny GPT-2 with fresh weights."""
        torch.manual_seed(self.seed)
        sizes = self.sizes
        config = laptop.lm_config(
            self.tokenizer, n_embd=sizes.width, n_layer=sizes.layers, n_positions=sizes.positions
        )
        return AutoModelForCausalLM.from_config(config), self.tokenizer

    def judge(self, noise: float = 0.0) -> Judge:
        """Accuracy, coverage of the main facts and brevity."""
        return laptop.SummaryScorer(noise=noise, seed=self.seed)


class FileSummaries:
    """One's own model and documents, as files, saved datasets or hub ids; the labeller likes the references' words."""

    facts = None

    def __init__(self, args: SummaryArguments) -> None:
        section_config(SummaryWorldConfig, "world", args.section("world"))  # a misspelt key is to be refused
        assert args.model is not None and args.documents is not None  # which the arguments see to
        self.args, self.model, self.source = args, args.model, args.documents
        self.rows: Callable[[Part], list[Row]] = cache(self._rows)

    def _rows(self, part: Part) -> list[Row]:
        """The rows of `documents` that `select_summaries` keeps; Ziegler et al. clean them first."""
        return select_summaries(self._all_rows, self.tokenizer, part=part, summary_tokens=self.args.summary_tokens)[0]

    @cached_property
    def _all_rows(self) -> list[Row]:
        return load_summaries(self.source, clean=self.args.layout == "ziegler")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of `model`."""
        with found_model(self.model, "model") as path:
            return AutoTokenizer.from_pretrained(path)

    def start_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """`model`, in float32."""
        return load_model(self.model)

    def judge(self, noise: float = 0.0) -> Judge:
        """ROUGE with the reference, which knows no noise."""
        if noise:
            raise ValueError(f"`label_noise` is {noise}, but only the laptop world's labeller has such; use 0.")
        return ReferenceOverlap()


def make_summary_world(task: str, args: SummaryArguments) -> SummaryWorld:
    """The laptop world, or one's own files where `model` and `documents` are given."""
    return LaptopSummaries(task, args) if args.model is None else FileSummaries(args)
