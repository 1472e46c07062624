"""Several labellers as one: who answers, the majority, and groups of people who agree as often as the paper's did."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .protocol import Labeler, ScoreFunction, Text, check_rows
from .score import ScoreLabeler
from .tastes import MixedScore, RandomTaste


class MajorityLabeler:
    """Labels each record as most of its labellers do; among equals, as the one of them who is listed first.

    Args:
        labelers (`Sequence[Labeler]`): who votes; an odd number leaves fewer ties.

    Example:

    ```python
    >>> labeler = MajorityLabeler([ScoreLabeler(score_fn, error_rate=0.3, seed=seed) for seed in range(5)])
    >>> labels = labeler.label(prompts, completions)
    ```
    """

    def __init__(self, labelers: Sequence[Labeler]):
        if not labelers:
            raise ValueError("labelers=[] has nobody to ask; give one labeller or more.")
        self.labelers = list(labelers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labelers!r})"

    def label(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[int]:
        """Return the label of the majority per prompt, in 0..K-1; errors are those of the labellers."""
        votes = [labeler.label(prompts, completions, **columns) for labeler in self.labelers]
        # most_common keeps the first of equals
        return [Counter(labels).most_common(1)[0][0] for labels in zip(*votes, strict=True)]


class Panel:
    """Labellers of different tastes who share the work: each record goes to one of them.

    Who gets a record follows from `seed`, the members' names and the record's text, not from its place or batch. A
    panel is a labeller, so it may be a member of another one.

    Args:
        members (`Mapping[str, Labeler]`): labellers by name.
        seed (`int`, *optional*, defaults to `0`): of the division of work.

    Example:

    ```python
    >>> panel = Panel({"ann": ScoreLabeler(VividnessScorer()), "bob": ScoreLabeler(LengthScorer())})
    >>> ratings = panel.ratings(["She saw"], [[" a red moon.", " a man with a bicycle."]])
    >>> ratings["predictions"], ratings["references"]
    ([[0, 1]], [['ann', 'bob']])
    >>> Agreement().compute(**ratings)["agreement"]
    0.0
    ```
    """

    def __init__(self, members: Mapping[str, Labeler], *, seed: int = 0):
        if not members:
            raise ValueError("members={} has nobody to ask; give one labeller or more by name.")
        self.members = dict(members)
        self.seed = seed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.members!r}, seed={self.seed})"

    def label(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[int]:
        """Return the label of one member per prompt, in 0..K-1.

        Raises:
            ValueError: lengths that disagree, fewer than 2 completions, or what the members refuse.
        """
        check_rows(prompts, completions, columns)
        rows_of: dict[str, list[int]] = {}
        for i, record in enumerate(zip(prompts, completions, strict=True)):
            rows_of.setdefault(self._member_for(*record), []).append(i)
        labels = [0] * len(prompts)
        for name, rows in rows_of.items():
            given = self.members[name].label(
                [prompts[i] for i in rows],
                [completions[i] for i in rows],
                **{column: [values[i] for i in rows] for column, values in columns.items()},
            )
            for i, label in zip(rows, given, strict=True):
                labels[i] = label
        return labels

    def ratings(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> dict[str, list[Any]]:
        """Let every member label every record; return the arguments of `Agreement().compute(**...)`."""
        check_rows(prompts, completions, columns)
        votes = [member.label(prompts, completions, **columns) for member in self.members.values()]
        return {
            "predictions": [list(labels) for labels in zip(*votes, strict=True)],
            "references": [list(self.members) for _ in prompts],
            "num_choices": [len(candidates) for candidates in completions],
        }

    def _member_for(self, prompt: Text, candidates: list[Text]) -> str:
        names = list(self.members)
        return random.Random(repr((self.seed, names, prompt, candidates))).choice(names)


class Tastes(NamedTuple):
    """How far people's liking departs from the score that they all see, in units of its `score_spread`.

    Args:
        shared: Standard deviation of the taste that the labellers have in common and the authors do not.
        personal: That of each labeller's own taste.
        author: That of each author's own taste.
    """

    shared: float
    personal: float
    author: float


PAPER_TASTES = {
    "sentiment": Tastes(shared=0.44, personal=1.55, author=0.56),
    "tldr": Tastes(shared=1.55, personal=1.84, author=0.58),
}
"""Tastes with which `paper_labelers` agree as the people of Ziegler et al. 2019 did; see there."""

OTHER_TASTE = 1.73
"""Weight of another taste beside that of the judge's score (1), both in units of their `score_spread`.

With it and normal scores, labeller and judge pick the same of four candidates in 46 % of records. A labeller who
compares the pick of the own taste with the judge's then prefers the own in 77 % (1 − 0.46 / 2, equal picks counted
half): the paper's figure for a policy from human labels of sentiment against one from the sentiment classifier.

>>> taste = MixedScore((r_s, 1.0 / spread_of_r_s), (VividnessScorer(), OTHER_TASTE / spread_of_vividness))
"""


def paper_labelers(
    task: str,
    score_fn: ScoreFunction,
    *,
    spread: float = 1.0,
    labellers: int = 5,
    authors: int = 2,
    seed: int = 0,
) -> tuple[Panel, Panel]:
    """Labellers and authors who agree on the best of four as often as those of Ziegler et al. 2019 did.

    Everybody sees `score_fn`. On top of it the labellers have a taste in common, and each person one of their own, of
    the sizes in `PAPER_TASTES`. With normal scores the figures are, in percent, where chance gives 25:

    | task | labeller, labeller | author, labeller | author, author | shared | personal | author |
    |---|---|---|---|---|---|---|
    | `"sentiment"` | 38 | 44 | 62 | 0.44 | 1.55 | 0.56 |
    | `"tldr"` | 46 | 38 | 61 | 1.55 | 1.84 | 0.58 |

    A shared taste raises the first figure and lowers the second, a personal one lowers both, an author's the second
    and third. That labellers of TL;DR agree more with each other than with the authors takes a shared taste larger
    than the spread of what both see in the summaries. Other distributions of scores shift the figures a little: by up
    to 4 points for the sentiment of the embedded world's passages.

    Without tastes, labellers who only slip or choose at random reach these figures between any two of one kind:
    `ScoreLabeler(score_fn, error_rate=e)` agrees in (1 − e)² + e² / 3, so 38, 46 and 62 % are error rates of 0.44,
    0.36 and 0.22; for normal scores `boltzmann_temperature` of 1.06, 0.75 and 0.43 times the spread.

    Args:
        task (`str`): `"sentiment"` or `"tldr"`.
        score_fn (`ScoreFunction`): what all of them see, as the judge does.
        spread (`float`, *optional*, defaults to `1.0`): `score_spread` of `score_fn`.
        labellers (`int`, *optional*, defaults to `5`): how many.
        authors (`int`, *optional*, defaults to `2`): how many.
        seed (`int`, *optional*, defaults to `0`): other people.

    Returns:
        The panel of labellers and that of authors. The `ratings` of each give the agreement within it, and those of
        `Panel({"labellers": ..., "authors": ...})` the agreement of one labeller and one author.

    Raises:
        ValueError: an unknown task, a spread that is not positive, or a group without a member.

    Example:

    ```python
    >>> labellers, authors = paper_labelers("tldr", score_fn, spread=score_spread(score_fn, prompts, completions))
    >>> within = Agreement().compute(**labellers.ratings(prompts, completions))["agreement"]
    >>> both = Panel({"labellers": labellers, "authors": authors})
    >>> between = Agreement().compute(**both.ratings(prompts, completions))["agreement"]
    ```
    """
    if task not in PAPER_TASTES:
        raise ValueError(f"task={task!r} is unknown; choose one of {sorted(PAPER_TASTES)}.")
    if not spread > 0:
        raise ValueError(f"spread={spread} must be positive; `score_spread` measures it.")
    for name, count in {"labellers": labellers, "authors": authors}.items():
        if count < 1:
            raise ValueError(f"{name}={count} leaves a panel without a member; give 1 or more.")
    tastes = PAPER_TASTES[task]
    shared = (RandomTaste(f"{seed} labellers"), tastes.shared * spread)
    sees = (score_fn, 1.0)

    def person(name: str, size: float, *common: tuple[ScoreFunction, float]) -> Labeler:
        return ScoreLabeler(MixedScore(sees, *common, (RandomTaste(f"{seed} {name}"), size * spread)))

    return (
        Panel(
            {f"labeller {i}": person(f"labeller {i}", tastes.personal, shared) for i in range(labellers)}, seed=seed
        ),
        Panel({f"author {i}": person(f"author {i}", tastes.author) for i in range(authors)}, seed=seed),
    )
