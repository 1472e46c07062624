"""Tastes: scores to mix into a labeller's preference, so that labellers differ from each other and from the judge."""

import math
import random
from statistics import fmean, variance

from .protocol import ScoreFunction, Text, plain_text
from .score import candidate_scores


class MixedScore:
    """Σ weight · score: a labeller with another taste than the judge, who sees one of the scores only.

    Scores of different units are brought to one by weights of `weight / score_spread(score_fn, ...)`.

    Args:
        terms (`tuple[ScoreFunction, float]`): score functions and their weights; a negative weight is a dislike.

    Raises:
        ValueError: without a term, or for a weight that is not finite.

    Example:

    ```python
    >>> likes_length = MixedScore((VividnessScorer(), 1.0), (LengthScorer(), 0.5))
    >>> likes_length(["She saw", "She saw"], [" a red moon.", " a man who sold her an old bicycle."])
    [2.5, 4.0]
    ```
    """

    __name__ = "mixed_score"  # TRL's trainers log a reward function under its name

    def __init__(self, *terms: tuple[ScoreFunction, float]):
        if not terms:
            raise ValueError("A mixed score needs a term; give pairs of a score function and its weight.")
        for score_fn, weight in terms:
            if not math.isfinite(weight):
                raise ValueError(f"weight={weight} of {score_fn!r} must be a finite number; 0 leaves the score out.")
        self.terms = terms

    def __repr__(self) -> str:
        terms = (f"({score_fn!r}, {weight:g})" for score_fn, weight in self.terms)
        return f"{type(self).__name__}({', '.join(terms)})"

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the weighted sum for each completion, in order; every term gets the columns."""
        scores = [score_fn(prompts, completions, **columns) for score_fn, _ in self.terms]
        weights = [weight for _, weight in self.terms]
        rows = zip(*scores, strict=True)
        return [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in rows]


class LengthScorer:
    """Words of the completion: what a labeller goes by who takes the longer text for the better one."""

    __name__ = "length"

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the number of words, separated by white space, of each completion; columns do not matter."""
        return [float(len(plain_text(completion).split())) for completion in completions]


class RandomTaste:
    """A liking without a reason that lasts: a standard normal number for each completion of a prompt.

    It is drawn from `seed` and the texts, so its owner gives the same label to the same record, however often and
    wherever it is asked for. Labellers who share a seed share the taste; others' tastes are independent.

    Args:
        seed (`int` or `str`): whose taste it is.

    Example: two people who see the same quality, each with a taste of their own of twice its spread.

    ```python
    >>> people = [ScoreLabeler(MixedScore((quality, 1.0), (RandomTaste(name), 2.0))) for name in ("ann", "bob")]
    ```
    """

    __name__ = "random_taste"

    def __init__(self, seed: int | str):
        self.seed = seed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.seed!r})"

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the liking for each completion, in order; columns do not matter."""
        pairs = zip(prompts, completions, strict=True)
        return [random.Random(repr(("taste", self.seed, *pair))).gauss(0.0, 1.0) for pair in pairs]


def score_spread(
    score_fn: ScoreFunction, prompts: list[Text], completions: list[list[Text]], **columns: list
) -> float:
    """How far the candidates of one prompt lie apart: the root of the mean over prompts of the scores' variance.

    The unit for the noise and the tastes of a labeller of this score: a labeller compares candidates of one prompt, so
    differences between prompts do not count.

    Args:
        score_fn (`ScoreFunction`): the score.
        prompts (`list`): B prompts, a few hundred or more.
        completions (`list[list]`): B lists of K >= 2 completions.
        columns (`list`): extra columns of length B.

    Raises:
        ValueError: as `ScoreLabeler.label`, or if no two candidates of a prompt differ in score.

    Example:

    ```python
    >>> score_spread(LengthScorer(), ["p", "q"], [["a", "a b c"], ["a b c d e", "a b c d e f g"]])
    1.4142135623730951
    ```
    """
    scores = candidate_scores(score_fn, prompts, completions, columns)
    spread = math.sqrt(fmean(variance(row) for row in scores)) if scores else 0.0
    if spread == 0.0:
        raise ValueError(
            f"Within none of {len(prompts)} prompts do the candidates differ in score, so it has no spread; give more "
            "prompts, or a score that tells candidates apart."
        )
    return spread
