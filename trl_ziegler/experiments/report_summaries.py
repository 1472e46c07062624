"""The plots of a summarization run: what each model copies, from where, and how that grew during training.

`M` models, in the order in which they are given; the figures of each are the result of `metrics.Copying`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..metrics.copying import COPIED_SHARE_ALARM, NGRAMS
from .report_plots import BLUE, GREEN, INK, ORANGE, Curve, Panel, Plot, Row, curve_plots, render_png

POSITION_BINS = 20
ROW_FILL = 0.72
"""Height of the tallest bar of the histograms, of the distance between two models' base lines."""

NGRAM_BLUES = ("#08306B", "#1F5FA6", "#4A90C9", "#7FB5DD", "#B3D3EA")
"""One hue from dark to light, so that the order of n shows without telling colours apart."""

Copied = Mapping[str, Mapping[str, Any]]

TRAINING_PANELS = (
    Panel(
        "copied_share",
        "Copied sentences during training",
        "share of summary sentences",
        "A rise means that copying pays; over the line most of a summary is copied. Read samples.",
        (Curve("copied_share", "copied", ORANGE),),
        level="threshold",
        bottom=0.0,
        top=1.03,
    ),
    Panel(
        "rouge_mean",
        "ROUGE during training",
        "mean of ROUGE-1, 2 and L",
        "Need not rise: preferences are not overlap. A fall while the copied share rises: the policy is a copier.",
        (Curve("rouge_mean", "ROUGE", GREEN),),
        bottom=0.0,
    ),
)


def copy_positions_plot(models: Copied) -> Plot:
    """Where in the source the copied sentences start: one histogram per model, all to one scale.

    Args:
        models: for each model's name its `copy_positions` (relative, in [0, 1)) and `sentences` (all of its summary
            sentences); a model that copies nothing is drawn as a row that says so.

    Raises:
        ValueError: there is no model.
    """
    _check_models(models)
    look_for = (
        "Ziegler et al. (2019) found most copies at the very beginning: the first sentence of a post often is its "
        "summary. A policy trained on preferences may copy more; from the same places is the healthy case."
    )
    png = render_png(draw_copy_positions, models, size=(9.6, 1.2 + 0.8 * max(len(models), 2)))
    return Plot("copy_positions", "Where copied sentences come from", look_for, png)


def draw_copy_positions(axes: Axes, models: Copied) -> None:
    """Fill `axes` with what `copy_positions_plot` shows; models from top to bottom."""
    shares = [_binned(entry["copy_positions"]) for entry in models.values()]
    scale = ROW_FILL / max([share.max() for share in shares if share.any()], default=1.0)
    edges = np.linspace(0, 1, POSITION_BINS + 1)
    for row, share in enumerate(shares):
        base = len(models) - 1 - row
        axes.axhline(base, color=INK, linewidth=0.6, zorder=4)
        if not share.any():
            axes.text(0.5, base + 0.25, "no copied sentences", ha="center", fontsize=10, color=INK)
            continue
        axes.bar(edges[:-1], share * scale, 1 / POSITION_BINS, base, align="edge", color=BLUE, edgecolor="white")
        peak = int(share.argmax())
        middle = (edges[peak] + edges[peak + 1]) / 2
        axes.text(middle, base + share[peak] * scale + 0.03, f"{share[peak]:.0%}", ha="center", fontsize=9, color=INK)
    labels = [f"{name}\n{_copied(entry)}" for name, entry in models.items()]
    axes.set_yticks(np.arange(len(models))[::-1] + 0.25, labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.set(xlim=(0, 1), ylim=(0, len(models)))
    axes.set(xlabel="start in the source (0 = its beginning, 1 = its end)", ylabel="share of a model's copies")


def _binned(positions: Sequence[float]) -> np.ndarray:
    """Share of the positions in each of the bins, `[POSITION_BINS]`; zeros if there are none."""
    counts = np.histogram(positions, bins=POSITION_BINS, range=(0.0, 1.0))[0]
    return counts / max(counts.sum(), 1)


def _copied(entry: Mapping[str, Any]) -> str:
    return f"{len(entry['copy_positions'])} of {entry['sentences']} sentences"


def copied_share_plot(models: Copied) -> Plot:
    """Copied share and novel n-grams, n = 1..5, of each model, as bars.

    Args:
        models: for each model's name its `copied_share` and `novel_ngrams`, shares in [0, 1] or None.

    Raises:
        ValueError: there is no model.
    """
    _check_models(models)
    look_for = (
        "A model that copies more has fewer novel n-grams at every n. Few novel 1-grams but many novel 5-grams: it "
        "uses the source's words in sentences of its own. The reference shows what people do."
    )
    png = render_png(draw_copied_share, models, size=(9.6, 4.0))
    return Plot("copying", "Copied sentences and novel n-grams", look_for, png)


def draw_copied_share(axes: Axes, models: Copied) -> None:
    """Fill `axes` with what `copied_share_plot` shows; models from left to right."""
    columns = {"copied sentences": ([entry["copied_share"] for entry in models.values()], ORANGE)}
    for n, color in zip(NGRAMS, NGRAM_BLUES, strict=True):
        columns[f"novel {n}-grams"] = ([entry["novel_ngrams"][n - 1] for entry in models.values()], color)
    width = 0.84 / len(columns)
    for place, (label, (shares, color)) in enumerate(columns.items()):
        x = np.arange(len(models)) + (place - (len(columns) - 1) / 2) * width
        heights = [0.0 if share is None else 100 * share for share in shares]
        bars = axes.bar(x, heights, 0.9 * width, color=color, label=label)
        texts = ["–" if share is None else f"{100 * share:.0f}" for share in shares]
        axes.bar_label(bars, texts, padding=1, fontsize=8, color=INK)
    axes.set_xticks(np.arange(len(models)), list(models), parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    # A single model's bars are not made to fill the plot.
    middle, half = (len(models) - 1) / 2, max(len(models), 3) / 2
    axes.set(xlabel="model", ylabel="share (%)", ylim=(0, 108), xlim=(middle - half, middle + half))
    axes.legend(frameon=False, fontsize=9, ncols=len(columns), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def training_plots(rows: Sequence[Row]) -> list[Plot]:
    """Copied share and ROUGE against episodes; a plot whose key was not logged is left out.

    Args:
        rows: log rows with `episode`, `copied_share` and `rouge_mean`; those of evaluations may prefix the last two
            with `eval_` and are drawn as dots.
    """
    return curve_plots(rows, TRAINING_PANELS, "episode", "episodes", {"threshold": COPIED_SHARE_ALARM})


def _check_models(models: Copied) -> None:
    if not models:
        raise ValueError("`models` is empty: give the copying figures of at least one model.")
