"""Numbers of a configuration and the ranges they lie in."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; with `above` more than `low`. `why` ends the sentence of a refusal."""

    low: float
    high: float = math.inf
    above: bool = False
    why: str = ""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        least = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        return least if self.high == math.inf else f"from {self.low:g} to {self.high:g}"


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """`ValueError` for a field outside its range; `None` passes where it is the default."""
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        if value not in allowed and not _is_default_none(settings, name):
            raise ValueError(f"`{name}` is {value!r}; give a number {allowed}{allowed.why}.")


def check_counts(settings: Any, names: Iterable[str]) -> None:
    """`ValueError` for a field that is no whole number of at least 1; `None` passes where it is the default."""
    for name in names:
        value = getattr(settings, name)
        if _is_default_none(settings, name):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"`{name}` is {value!r}; give a whole number.")
        if value < 1:
            raise ValueError(f"`{name}` is {value}; give at least 1.")


def _is_default_none(settings: Any, name: str) -> bool:
    return getattr(settings, name) is None and type(settings).__dataclass_fields__[name].default is None
