"""Scores that compare a completion with its reference or its prompt: for texts whose truth nobody knows."""

from rouge_score.rouge_scorer import RougeScorer

from ..metrics.copying import copied_share
from ..metrics.rouge import ROUGE_TYPES, rouge_scores
from .protocol import Text, plain_text


class ReferenceOverlap:
    """Mean of ROUGE-1, 2 and L with the column `reference`, in [0, 1]: a labeller who likes what the author wrote."""

    __name__ = "rouge_mean"  # TRL's trainers log a reward function under its name

    def __init__(self) -> None:
        self._scorer = RougeScorer(ROUGE_TYPES)

    def __call__(
        self, prompts: list[Text], completions: list[Text], *, reference: list[str], **columns: list
    ) -> list[float]:
        """Score `completions[i]` by its overlap with `reference[i]`."""
        rows = zip(completions, reference, strict=True)
        return [rouge_scores(self._scorer, plain_text(text), [wanted])["mean"] for text, wanted in rows]


class CopiedShare:
    """Share of a completion's sentences that its prompt holds verbatim, in [0, 1]; None where it has no sentence."""

    __name__ = "copied_share"

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float | None]:
        """Copied share of `completions[i]` in `prompts[i]`."""
        rows = zip(completions, prompts, strict=True)
        return [copied_share(plain_text(text), plain_text(source)) for text, source in rows]
