"""The plots of a comparison: training curves of several variants over their seeds, and single figures of each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .report_plots import BLUE, GREEN, INK, ORANGE, Plot, Row, render_png, running_mean

COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)
"""Okabe and Ito's again; a variant keeps its own in all plots of a comparison."""
STYLES = ("-", "--", ":")
SIZE = (7.2, 4.0)


@dataclass(frozen=True)
class Curves:
    """A plot of training logs: one key or a few, `y`, against another, `x`."""

    title: str
    look_for: str
    x: str
    y: str | list[str]

    @property
    def keys(self) -> list[str]:
        """What is drawn, each with a line style of its own."""
        return [self.y] if isinstance(self.y, str) else list(self.y)


def curves_plot(name: str, curves: Curves, logs: Mapping[str, Sequence[Sequence[Row]]]) -> Plot:
    """Each variant's mean over seeds in a line, and the range over seeds in a pale band.

    Args:
        name: File stem.
        curves: What to draw; a key that a variant's logs lack is left out there.
        logs: Per variant the `log_history` of each seed.
    """
    return Plot(name, curves.title, curves.look_for, render_png(_draw_curves, curves, logs, size=SIZE))


def over_logs(logs: Sequence[Sequence[Row]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Both keys `[seeds, updates]` of the rows that hold both, as far as all seeds have come; smoothed over 1/20."""
    rows = [np.array([[row[x], row[y]] for row in log if x in row and y in row], dtype=float) for log in logs]
    shortest = min(map(len, rows), default=0)
    if shortest == 0:
        return np.empty((0, 0)), np.empty((0, 0))
    width = max(1, shortest // 20)
    both = np.array([[running_mean(column, width) for column in seed[:shortest].T] for seed in rows])
    return both[:, 0], both[:, 1]


def _draw_curves(axes: Axes, curves: Curves, logs: Mapping[str, Sequence[Sequence[Row]]]) -> None:
    for (variant, own), colour in zip(logs.items(), COLOURS * len(logs), strict=False):
        for key, style in zip(curves.keys, STYLES * len(curves.keys), strict=False):
            x, y = over_logs(own, curves.x, key)
            if not y.size:
                continue
            label = variant if len(curves.keys) == 1 else f"{variant}: {key}"
            axes.plot(x.mean(0), y.mean(0), style, color=colour, linewidth=1.8, label=label, zorder=3)
            axes.fill_between(x.mean(0), y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0, zorder=1)
    axes.set(xlabel=curves.x, ylabel=" and ".join(curves.keys))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, loc="best", framealpha=0.85, edgecolor="none")


def seeds_plot(name: str, measure: str, results: Mapping[str, Mapping[str, Any]]) -> Plot:
    """One dot for each seed, a stroke at the mean.

    Args:
        name: File stem.
        measure: What the numbers are.
        results: Per variant `values` and `mean`.
    """
    look_for = "A difference between variants counts for something where their dots do not mix."
    return Plot(name, measure, look_for, render_png(_draw_seeds, measure, results, size=SIZE))


def _draw_seeds(axes: Axes, measure: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    for i, (result, colour) in enumerate(zip(results.values(), COLOURS * len(results), strict=False)):
        values = result["values"]
        axes.plot([i] * len(values), values, "o", color=colour, markersize=7, alpha=0.75, zorder=3)
        axes.plot([i - 0.25, i + 0.25], [result["mean"]] * 2, color=colour, linewidth=2, zorder=4)
    axes.set_xticks(range(len(results)), list(results))
    axes.set(ylabel=measure, xlim=(-0.6, len(results) - 0.4))
