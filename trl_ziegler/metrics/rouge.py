"""ROUGE of summaries against human ones, with the text rules named in the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

TOKENIZER = "rouge-score default: lower case, split at whatever is not a-z or 0-9"
"""The text rule in words; the `tokenizer` of every result, since figures under two rules cannot be compared."""


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2, ROUGE-L and their mean, as Ziegler et al. 2019 report them in section 3.2.

    Constructed directly, `Rouge()`, so that no hub is asked. `compute(predictions=, references=)` takes

    - `predictions`: the summaries, strings;
    - `references`: one string per summary, or one list of strings each, of which every ROUGE type takes its best;
    - `use_stemmer` (`bool`, *optional*, defaults to `False`): Porter's stemmer on words of more than three letters;
    - `per_example` (`bool`, *optional*, defaults to `False`): also return the scores of each summary,

    and returns `rouge1`, `rouge2`, `rougeL`, F-measures in [0, 1] averaged over summaries; `mean`, the mean of the
    three; `n`, the number of summaries; `empty`, how many scored 0 because no token was left of the summary or of its
    references; `tokenizer` and `use_stemmer`, which say how texts were read; and, if asked for, `per_example`, one
    dict with the four scores for each summary. Raises `ValueError` for an empty set or a summary without references.

    The numbers are those of the package `rouge-score`: texts are lower-cased and split at whatever is not a-z or 0-9,
    so accented letters break words and other scripts leave no token; ROUGE-L is over the whole summary, newlines are
    spaces (not `rougeLsum`).

    Example:

    >>> Rouge().compute(predictions=["The cat sat."], references=["the cat ran"])["rouge2"]
    0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        several = {"predictions": text, "references": datasets.Sequence(text)}
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2, ROUGE-L and their mean through rouge-score, with the text rules it used.",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions: summaries; references: one text, or a list of texts, per summary.",
            features=[datasets.Features(several), datasets.Features({"predictions": text, "references": text})],
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any]:
        """See the class; without arguments, the result over everything that was added in batches."""
        # Of two formats `evaluate` picks by the first row, and fails on an index where there is none.
        if predictions is not None and not len(predictions):
            raise ValueError("`predictions` is empty: ROUGE needs at least one summary.")
        return super().compute(predictions=predictions, references=references, **options)

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]],
        use_stemmer: bool = False,
        per_example: bool = False,
    ) -> dict[str, Any]:
        targets = [[texts] if isinstance(texts, str) else texts for texts in references]
        if [] in targets:
            raise ValueError(f"references[{targets.index([])}] is empty: give at least one reference per summary.")
        scorer = RougeScorer(ROUGE_TYPES, use_stemmer=use_stemmer)
        rows = [rouge_scores(scorer, *pair) for pair in zip(predictions, targets, strict=True)]
        result: dict[str, Any] = {key: float(np.mean([row[key] for row in rows])) for key in (*ROUGE_TYPES, "mean")}
        result["n"] = len(rows)
        result["empty"] = sum(_has_no_token(pair) for pair in zip(predictions, targets, strict=True))
        result |= {"tokenizer": TOKENIZER, "use_stemmer": use_stemmer}
        return result | {"per_example": rows} if per_example else result


def rouge_scores(scorer: RougeScorer, summary: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of one summary, each the best over its references, and their `mean`."""
    best = scorer.score_multi(references, summary)
    scores = {key: float(best[key].fmeasure) for key in ROUGE_TYPES}
    return scores | {"mean": sum(scores.values()) / len(scores)}


def _has_no_token(pair: tuple[str, Sequence[str]]) -> bool:
    """Whether the summary, or every one of its references, is empty to the tokenizer."""
    summary, references = pair
    return not tokenize(summary, None) or not any(tokenize(text, None) for text in references)
