"""The plots of a run report: from log rows and points to PNG bytes, each with a line on what good looks like.

Figures are built with matplotlib's object interface on the Agg canvas: no display, no global figure list.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

Row = Mapping[str, Any]

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#C0392B", "#8A8A8A", "#222222"
"""Okabe and Ito's colours, told apart under the common colour deficiencies, and two neutrals."""

SCORE_UNIT = "score (reward-model units)"
KL_UNIT = "KL (nats per response)"


@dataclass(frozen=True)
class Plot:
    """One plot: `name` is its file stem, `png` its bytes, `title` its heading and `look_for` what good looks like."""

    name: str
    title: str
    look_for: str
    png: bytes


@dataclass(frozen=True)
class Curve:
    """One line of a plot: values of the log key `key` in `color`, and those of `eval_<key>` as dots."""

    key: str
    label: str
    color: str = BLUE


Drawn = tuple[Curve, np.ndarray, np.ndarray]
"""A curve with its times and values."""


@dataclass(frozen=True)
class Panel:
    """One plot against the log's clock: its curves, the unit of its vertical axis, and a level to compare with.

    `level` names one of those that `curve_plots` is given; `bottom` and `top` fix the ends of the axis.
    """

    name: str
    title: str
    unit: str
    look_for: str
    curves: tuple[Curve, ...]
    level: str | None = None
    bottom: float | None = None
    top: float | None = None


POLICY_PANELS = (
    Panel(
        "score",
        "Score under the reward model",
        SCORE_UNIT,
        "Should rise quickly, then flatten. A gap between the lines is the price of penalised responses.",
        (
            Curve("objective/scores", "optimised, with penalties"),
            Curve("score/raw", "without penalties", ORANGE),
        ),
    ),
    Panel(
        "true_score",
        "True score",
        "score (the judge's units)",
        "Should rise with the score. If it turns down while that one rises, the policy exploits the reward model.",
        (Curve("score/true", "true score", GREEN),),
    ),
    Panel(
        "kl",
        "KL from the reference",
        KL_UNIT,
        "Should settle on the target line, or level off by itself if β is fixed. Steady growth means β is too small.",
        (Curve("objective/kl", "KL"),),
        level="target",
    ),
    Panel(
        "kl_coef",
        "KL coefficient β",
        "β (score per nat)",
        "A flat line if fixed. If adaptive, should move early and then settle; still moving at the end: train longer.",
        (Curve("objective/kl_coef", "β"),),
        bottom=0.0,  # a fixed β would have an axis of rounding errors
    ),
    Panel(
        "entropy",
        "Entropy of the policy",
        "−log π (nats per response)",
        "Should fall slowly. A collapse towards 0 means that the policy says the same thing to every query.",
        (Curve("objective/entropy", "entropy"),),
        bottom=0.0,
    ),
    Panel(
        "valid_share",
        "Responses that end properly",
        "share of responses",
        "Should rise to 1 or stay there. Responses outside this share carry the penalty instead of their score.",
        (Curve("objective/valid_share", "valid"),),
        bottom=0.0,
        top=1.03,
    ),
    Panel(
        "update_size",
        "Size of the updates",
        "share of tokens",
        "The clipped share is healthy up to about 0.3. Higher: lower the learning rate or the PPO epochs.",
        (Curve("policy/clipfrac_avg", "clipped ratio"),),
        bottom=0.0,
    ),
    Panel(
        "approx_kl",
        "Policy change within an update",
        "approximate KL (nats per token)",
        "Should stay small and level, around 0.01 or below. Spikes mean unstable updates.",
        (Curve("policy/approxkl_avg", "approximate KL"),),
        bottom=0.0,
    ),
    Panel(
        "losses",
        "Losses",
        "loss (no unit)",
        "The value loss should fall. The policy loss hovers near 0 by construction and says little.",
        (Curve("loss/value_avg", "value"), Curve("loss/policy_avg", "policy", ORANGE)),
    ),
    Panel(
        "explained_variance",
        "Explained variance of the value head",
        "share of variance",
        "Should climb from 0 towards 1. Below 0 the value head is worse than a constant, and only adds noise.",
        (Curve("val/explained_variance", "explained variance"),),
        level="zero",
    ),
)

REWARD_PANELS = (
    Panel(
        "reward_accuracy",
        "Reward-model accuracy on labels",
        "share of labels matched",
        "Dots (held out) should be well above chance and not far below the line (training); a gap is overfitting.",
        (Curve("accuracy", "accuracy"),),
        level="chance",
        bottom=0.0,
        top=1.03,
    ),
    Panel(
        "reward_loss",
        "Reward-model loss",
        "cross entropy (nats per record)",
        "Should fall, with the held-out dots following. Dots that rise again: fewer epochs or more labels.",
        (Curve("loss", "loss"),),
        bottom=0.0,
    ),
    Panel(
        "reward_margin",
        "Margin of the labelled best",
        SCORE_UNIT,
        "The best completion's lead over the others; should grow from 0.",
        (Curve("margin", "margin"),),
    ),
)


def series(rows: Sequence[Row], key: str, clock: str) -> tuple[np.ndarray, np.ndarray]:
    """`(times, values)` of the rows that hold a finite number under `key`; both float64 `[n]`.

    `clock` is the key of the time (`episode` or `step`). Evaluation rows often lack it and take the last one seen.
    """
    times, values, now = [], [], 0.0
    for row in rows:
        now = row.get(clock, now)
        if isinstance(row.get(key), int | float) and math.isfinite(row[key]):
            times.append(now)
            values.append(row[key])
    return np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)


def policy_plots(rows: Sequence[Row], kl_target: float | None) -> list[Plot]:
    """Learning curves of PPO against episodes; a panel of which no key was logged is left out.

    Args:
        rows: `trainer.state.log_history`, one row per update.
        kl_target: nats per response, drawn into the KL plot; None for a fixed β.
    """
    return curve_plots(rows, POLICY_PANELS, "episode", "episodes", {"target": kl_target, "zero": 0.0})


def reward_plots(rows: Sequence[Row], chance: float | None) -> list[Plot]:
    """Learning curves of the reward model against optimiser steps.

    Args:
        rows: `trainer.state.log_history` of the reward trainer.
        chance: accuracy of a guess, drawn into the accuracy plot; None if unknown.
    """
    return curve_plots(rows, REWARD_PANELS, "step", "optimiser steps", {"chance": chance})


def curve_plots(
    rows: Sequence[Row], panels: Sequence[Panel], clock: str, clock_unit: str, levels: Mapping[str, float | None]
) -> list[Plot]:
    plots = []
    for panel in panels:
        lines = [(curve, *series(rows, curve.key, clock)) for curve in panel.curves]
        dots = [(curve, *series(rows, f"eval_{curve.key}", clock)) for curve in panel.curves]
        lines, dots = ([drawn for drawn in kind if len(drawn[1])] for kind in (lines, dots))
        if lines or dots:
            level = levels[panel.level] if panel.level else None
            png = render_png(_draw_panel, panel, clock_unit, lines, dots, level)
            plots.append(Plot(panel.name, panel.title, panel.look_for, png))
    return plots


def _draw_panel(
    axes: Axes, panel: Panel, clock_unit: str, lines: Sequence[Drawn], dots: Sequence[Drawn], level: float | None
) -> None:
    for curve, times, values in lines:
        _draw_line(axes, curve, times, values)
    for i, (curve, times, values) in enumerate(dots):
        several = len(dots) > 1  # then in the colours of their lines, and the first larger: the others may lie on it
        marker, size = ("s", 8) if several and i == 0 else ("o", 5)
        color = curve.color if several else INK
        label = f"{curve.label} (held out)"
        axes.plot(times, values, marker, color=color, markeredgecolor=INK, markersize=size, label=label, zorder=4)
    if level is not None:
        label = f"{panel.level} {level:g}"
        axes.axhline(level, color=RED, linewidth=1.2, linestyle=(0, (5, 3)), label=label, zorder=2)
    axes.set(xlabel=clock_unit, ylabel=panel.unit)
    axes.set_ylim(bottom=panel.bottom, top=panel.top)
    if len(lines) + len(dots) + (level is not None) > 1:
        axes.legend(frameon=False, fontsize=9, loc="best")


def _draw_line(axes: Axes, curve: Curve, times: np.ndarray, values: np.ndarray) -> None:
    """The values in a pale line and, for a long log, their running mean over 1/20 of it in a strong one."""
    width = len(values) // 20
    if width < 2:
        axes.plot(times, values, color=curve.color, linewidth=1.8, label=curve.label, zorder=3)
        return
    axes.plot(times, values, color=curve.color, linewidth=0.8, alpha=0.3, zorder=1)
    axes.plot(times, running_mean(values, width), color=curve.color, linewidth=1.8, label=curve.label, zorder=3)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width // 2` values on either side and the one between (fewer at the ends); same shape as `values[n]`.

    Centred, so that a rising curve is not drawn later than it happened.
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    first, last = np.maximum(here - width // 2, 0), np.minimum(here + width // 2 + 1, len(values))
    return (total[last] - total[first]) / (last - first)


FRONTIER_LOOK_FOR = (
    "The curve is the best any policy can do at each KL, estimated from samples of the reference (Ziegler et al. "
    "2019, figure 3), as far as there are enough of them. Points should lie close under it: a point far below it paid "
    "KL for nothing. Points above it mean a sampling error."
)


def frontier_plot(frontier: Mapping[str, Any], summary: Mapping[str, Any]) -> Plot:
    """The reward-KL frontier and the named points.

    Args:
        frontier: `kl_penalty_curve`, rows of `beta`, `kl`, `reward`; `points`, rows of `name`, `kl`, `reward`.
        summary: `kl` of the policy on the frontier's queries (on all held-out ones it is another), and the `reached`
            and `optimum` reward there; any may be absent or None.
    """
    png = render_png(draw_frontier, frontier, summary, size=(9.6, 4.6))
    return Plot("frontier", "Reward against KL, with the optimum", FRONTIER_LOOK_FOR, png)


def draw_frontier(axes: Axes, frontier: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Fill `axes`; see `frontier_plot`."""
    curve = sorted((row["kl"], row["reward"]) for row in frontier["kl_penalty_curve"])
    if curve:
        axes.plot(*zip(*curve, strict=True), color=BLUE, linewidth=2.2, label="optimum", zorder=3)
    for point in frontier["points"]:
        axes.plot(point["kl"], point["reward"], "D", color=ORANGE, markersize=7, zorder=5)
        axes.annotate(
            str(point["name"]), (point["kl"], point["reward"]), xytext=(9, -14), textcoords="offset points",
            color=INK, fontsize=10, parse_math=False, zorder=6,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    at, reached, optimum = (summary.get(key) for key in ("kl", "reached", "optimum"))
    if at is not None and reached is not None and optimum is not None:
        axes.plot([at, at], [reached, optimum], color=RED, linewidth=1.4, linestyle=":", zorder=4)
        axes.plot(at, optimum, "*", color=RED, markersize=13, zorder=5, label="optimum at the policy's KL")
    axes.set(xlabel="KL from the reference (nats per response)", ylabel=SCORE_UNIT)
    axes.margins(y=0.12)  # room for the names under the lowest points
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=10, loc="lower right")


def render_png(draw: Callable[..., None], *content: Any, size: tuple[float, float] = (6.4, 3.5)) -> bytes:
    """PNG of one set of axes that `draw(axes, *content)` fills."""
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)
    draw(axes, *content)
    axes.xaxis.label.set_fontsize(10)
    axes.yaxis.label.set_fontsize(10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
