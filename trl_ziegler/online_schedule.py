"""How many labels a run that collects them while it trains must have, and when it trains its reward model anew.

Counts are labels (one comparison each) and episodes (one query with one response), over all processes.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass


class LabelSchedule(ABC):
    """Labels against episodes. PPO pauses before episode n while fewer than `labels_before(n)` labels are there."""

    episodes: int
    margin: int

    @abstractmethod
    def labels_before(self, episode: int) -> int:
        """l(n): labels that must be there before episode n (0-based) is sampled; never falls."""

    @property
    @abstractmethod
    def training_points(self) -> tuple[int, ...]:
        """The values of l(n) at which a reward model is trained, rising; the first is l(0), before PPO."""

    def requested_before(self, episode: int) -> int:
        """Labels that are asked for before episode n: those that must be there and a margin, but no more than N."""
        return min(self.labels_before(self.episodes), self.labels_before(episode) + self.margin)

    def trainings_before(self, episode: int) -> int:
        """How many of the `training_points` l(n) has reached before episode n; at least 1."""
        return bisect_right(self.training_points, self.labels_before(episode))


@dataclass(frozen=True)
class CollectionSchedule(LabelSchedule):
    """Online collection of Ziegler et al. 2019, section 2.3: l(n) = N0 + (N - N0) (1 - (1 - n/E)^2), rounded up.

    Labels come fast at first, when the policy moves fast, and l(0) = N0, l(E) = N. `total = initial` is offline
    collection: one training, no further labels.

    Args:
        initial: N0, labels before PPO starts.
        total: N, labels of the whole run.
        episodes: E, episodes of the whole run.
        trainings: Reward trainings: one before PPO, the others at l(n) = N0 + (N - N0) j / trainings, j = 1, 2, ...
            (a training at l(n) = N would come when PPO has ended).
        margin: Labels that requests run ahead by, so that labellers need not wait for PPO.
    """

    initial: int
    total: int
    episodes: int
    trainings: int = 20
    margin: int = 1000

    def __post_init__(self) -> None:
        _require_at_least(self, initial=1, total=self.initial, episodes=1, trainings=1, margin=0)

    def labels_before(self, episode: int) -> int:
        """l(n), in whole labels; n beyond the run counts as its end."""
        n = min(episode, self.episodes)
        # 1 - (1 - n/E)^2 = n (2E - n) / E^2, in integers, so that l(E) is N and not the float beside it.
        return self._at(n * (2 * self.episodes - n), self.episodes**2)

    @property
    def training_points(self) -> tuple[int, ...]:
        """At most `trainings` different numbers of labels."""
        points = (self._at(j, self.trainings) for j in range(self.trainings))
        return tuple(dict.fromkeys(points))

    def _at(self, part: int, whole: int) -> int:
        """N0 + (N - N0) part / whole, rounded up."""
        return self.initial - (-(self.total - self.initial) * part // whole)


@dataclass(frozen=True)
class RoundSchedule(LabelSchedule):
    """Batches of labels (Stiennon et al. 2020): each round starts with its labels and a reward model trained on all.

    Args:
        labels_per_round: Labels collected at the start of each round.
        rounds: Rounds, of equally many episodes.
        episodes: Episodes of the whole run.
    """

    labels_per_round: int
    rounds: int
    episodes: int
    margin = 0  # a round's labels all compare what the policy says when it begins

    def __post_init__(self) -> None:
        _require_at_least(self, labels_per_round=1, rounds=1, episodes=self.rounds)

    def labels_before(self, episode: int) -> int:
        """The labels of the round that episode n is in and of those before it; n beyond the run is in the last one."""
        return self.labels_per_round * min(self.rounds, 1 + episode * self.rounds // self.episodes)

    @property
    def training_points(self) -> tuple[int, ...]:
        """One at the start of each round."""
        return tuple(self.labels_per_round * (i + 1) for i in range(self.rounds))


def _require_at_least(schedule: LabelSchedule, **least: int) -> None:
    for name, limit in least.items():
        if getattr(schedule, name) < limit:
            raise ValueError(
                f"`{name}` is {getattr(schedule, name)}; a {type(schedule).__name__} needs at least {limit}."
            )
