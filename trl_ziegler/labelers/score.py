"""Simulated labellers: the best of K by a known score, with or without human-like mistakes."""

import math
import random

from .protocol import ScoreFunction, Text, check_rows


class ScoreLabeler:
    """Labels each prompt with its highest-scoring completion (Ziegler et al. 2019, section 3.1.1: best of 4 by r_s).

    Noise is drawn from `seed` and the record's own text, so a record gets the same label whatever the order, the batch
    or the process it is labelled in; two labellers who should disagree by chance need two seeds.

    Args:
        score_fn (`ScoreFunction`): `f(prompts, completions, **columns) -> list[float]` over flat lists.
        error_rate (`float`, *optional*, defaults to `0.0`): probability in [0, 1] of a slip, which picks one of the
            other K-1 candidates with equal chances.
        boltzmann_temperature (`float`, *optional*): if given, choose with p ∝ exp(score / temperature) instead of
            the argmax; in units of the score. Excludes `error_rate`.
        position_bias (`float`, *optional*, defaults to `0.0`): what a place costs: a candidate loses this much of its
            score in the last place, proportionally less before it, and nothing in the first. In units of the score;
            a negative one favours the last.
        seed (`int`, *optional*, defaults to `0`): seed of the noise.

    Example:

    ```python
    >>> labeler = ScoreLabeler(lambda prompts, completions, **columns: [float(len(c)) for c in completions])
    >>> labeler.label(["Once"], [[" a.", " upon a time.", " two."]])
    [1]
    ```
    """

    def __init__(
        self,
        score_fn: ScoreFunction,
        *,
        error_rate: float = 0.0,
        boltzmann_temperature: float | None = None,
        position_bias: float = 0.0,
        seed: int = 0,
    ):
        if not 0.0 <= error_rate <= 1.0:
            raise ValueError(f"error_rate={error_rate} is not a probability; give a value between 0 and 1.")
        if boltzmann_temperature is not None and not 0.0 < boltzmann_temperature < math.inf:
            raise ValueError(
                f"boltzmann_temperature={boltzmann_temperature} must be positive; for the argmax leave it None."
            )
        if boltzmann_temperature is not None and error_rate > 0.0:
            raise ValueError(
                f"error_rate={error_rate} and boltzmann_temperature={boltzmann_temperature} are two kinds of labeller "
                "noise; give only one of them."
            )
        if not math.isfinite(position_bias):
            raise ValueError(f"position_bias={position_bias} must be a finite number; 0 leaves it out.")
        self.score_fn = score_fn
        self.error_rate = error_rate
        self.boltzmann_temperature = boltzmann_temperature
        self.position_bias = position_bias
        self.seed = seed

    def __repr__(self) -> str:
        names = ("error_rate", "boltzmann_temperature", "position_bias", "seed")
        noise = "".join(f", {name}={getattr(self, name)}" for name in names)
        return f"{type(self).__name__}({self.score_fn!r}{noise})"

    def label(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[int]:
        """Return the index of the best completion per prompt, in 0..K-1; the lowest index wins a tie.

        Args:
            prompts (`list`): B prompts.
            completions (`list[list]`): B lists of K >= 2 completions; K may differ between prompts.
            columns (`list`): extra columns of length B, repeated for each candidate and handed to `score_fn`.

        Raises:
            ValueError: if lengths disagree, a prompt has fewer than 2 completions, or a score is not finite.
        """
        records = zip(self._scores(prompts, completions, columns), prompts, completions, strict=True)
        return [self._choose(*record) for record in records]

    def rank(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[list[int]]:
        """Return each prompt's candidates from the best to the worst, as indices in 0..K-1; see `label`.

        The first of a ranking is what `label` returns. With a `boltzmann_temperature` the rest is chosen likewise
        among what is left; a slip of `error_rate` exchanges the best with the candidate that was taken for it.
        """
        records = zip(self._scores(prompts, completions, columns), prompts, completions, strict=True)
        return [self._order(*record) for record in records]

    def _order(self, scores: list[float], prompt: Text, candidates: list[Text]) -> list[int]:
        if self.boltzmann_temperature is None:
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            slip = order.index(self._choose(scores, prompt, candidates))
            order[0], order[slip] = order[slip], order[0]
            return order
        left, order = list(range(len(scores))), []
        while left:
            choice = self._choose([scores[i] for i in left], prompt, [candidates[i] for i in left])
            order.append(left.pop(choice))
        return order

    def _scores(
        self, prompts: list[Text], completions: list[list[Text]], columns: dict[str, list]
    ) -> list[list[float]]:
        scores = candidate_scores(self.score_fn, prompts, completions, columns)
        return [[score - self.position_bias * i / (len(row) - 1) for i, score in enumerate(row)] for row in scores]

    def _choose(self, scores: list[float], prompt: Text, candidates: list[Text]) -> int:
        best = max(range(len(scores)), key=scores.__getitem__)  # max() keeps the first of equals
        if self.boltzmann_temperature is None and self.error_rate == 0.0:
            return best
        rng = random.Random(repr((self.seed, prompt, candidates)))
        if self.boltzmann_temperature is not None:
            weights = [math.exp((score - scores[best]) / self.boltzmann_temperature) for score in scores]
            return rng.choices(range(len(scores)), weights)[0]
        if rng.random() < self.error_rate:
            return rng.choice([i for i in range(len(scores)) if i != best])
        return best


def candidate_scores(
    score_fn: ScoreFunction, prompts: list[Text], completions: list[list[Text]], columns: dict[str, list]
) -> list[list[float]]:
    """The score of each completion, grouped as `completions` are; `score_fn` is called once, on flat lists.

    Raises:
        ValueError: if lengths disagree, a prompt has fewer than 2 completions, or a score is not finite.
    """
    check_rows(prompts, completions, columns)
    rows = [i for i, candidates in enumerate(completions) for _ in candidates]
    flat = [completion for candidates in completions for completion in candidates]
    repeated = {name: [values[i] for i in rows] for name, values in columns.items()}
    scores = score_fn([prompts[i] for i in rows], flat, **repeated)
    _check_scores(scores, [prompts[i] for i in rows], flat)
    remaining = iter(scores)
    return [[next(remaining) for _ in candidates] for candidates in completions]


def _check_scores(scores: list[float], prompts: list[Text], completions: list[Text]) -> None:
    if len(scores) != len(completions):
        raise ValueError(
            f"score_fn returned {len(scores)} scores for {len(completions)} completions; it must return one each."
        )
    for score, prompt, completion in zip(scores, prompts, completions, strict=True):
        if not math.isfinite(score):
            raise ValueError(
                f"score_fn returned {score} for prompt {prompt!r} and completion {completion!r}; "
                "a labeller needs finite scores."
            )
