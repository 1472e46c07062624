"""The part of a report that online collection has: labels and win rate as PPO went on, and why a run was stopped; and
what people have done, where they gave the labels.

Read, where present, from the folder `collection` of the stage: `collection.json`, and of each reward model
`metrics.json` and, of the last one, `log_history.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..online_files import REWARD, SUMMARY
from .pipeline import read_json
from .report_alarms import Alarm
from .report_plots import BLUE, GREEN, GREY, INK, ORANGE, RED, Curve, Panel, Plot, Row, curve_plots, render_png, series

COLLECTION = "collection"
"""Folder of the collection in the stage `policy`."""

WIN_RATE = (
    Panel(
        "online_win_rate",
        "Win rate over the reference, by the labels",
        "share of validation picks",
        "Half at first, when the policy is the reference; should rise from there. Means of the last 100 labels.",
        (Curve("online/win_rate", "picks of the policy", GREEN),),
        level="even",
        bottom=0.0,
        top=1.03,
    ),
)


@dataclass(frozen=True)
class Collection:
    """What is known of an online collection: its trainings, each with its accuracy where there is one, its stop, and
    the log of the last reward training."""

    trainings: list[dict[str, Any]]
    stopped: dict[str, Any] | None
    reward_log: list[dict[str, Any]]


def read_collection(folder: Path) -> Collection | None:
    """The collection in a folder; None where there is none."""
    if not (folder / SUMMARY).is_file():
        return None
    summary = read_json(folder / SUMMARY)
    rewards = [folder / REWARD.format(number=row["number"]) for row in summary["trainings"]]
    trainings = [
        {**row, **(read_json(path / "metrics.json") or {})}
        for row, path in zip(summary["trainings"], rewards, strict=True)
    ]
    log = read_json(rewards[-1] / "log_history.json") if rewards else None
    return Collection(trainings, summary["stopped"], log or [])


def stop_alarm(collection: Collection | None, stopped: str | None) -> list[Alarm]:
    """The request to stop that ended the run, if one did.

    Args:
        collection: Knows of a stop while PPO ran, and when it was.
        stopped: The reason of a stop at whatever stage.
    """
    if collection is not None and collection.stopped is not None:
        detail = f"After {collection.stopped['episode']} episodes: {collection.stopped['reason']}"
    elif stopped is not None:
        detail = stopped
    else:
        return []
    return [Alarm("A labeller stopped the run", detail)]


def labelling_rows(labelling: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """Lines of the headline table, each a name, a value, a note and what is good: what people have done.

    Args:
        labelling: The result of `labelling_figures`; None where nobody was asked.
    """
    if labelling is None:
        return []
    parts = ", ".join(f"{labelling[kind]:,} {kind}" for kind in ("labels", "skips", "flags"))
    speed, agreement = labelling["median_seconds"], labelling["agreement"]
    note = parts if speed is None else f"{parts}; median {speed:.1f} seconds an answer"
    rows = [(f"Answers of {labelling['labellers']} people", f"{labelling['answers']:,}", note, "few skips and flags")]
    if agreement is not None:
        kappa = "" if agreement["kappa"] is None else f", Fleiss' kappa {agreement['kappa']:.2f}"
        note = f"chance {agreement['chance']:.2f}{kappa}; n = {agreement['n']:,} comparisons with several labels"
        good = "well above chance; the paper's labellers of sentiment: 0.38, of TL;DR: 0.46"
        rows.append(("Agreement of two people", f"{agreement['agreement']:.2f}", note, good))
    return rows


def collection_plots(rows: Sequence[Row], collection: Collection | None) -> list[Plot]:
    """Labels and win rate against episodes; no plots without a collection.

    Args:
        rows: The PPO trainer's `log_history`.
        collection: Its trainings are marked.
    """
    if collection is None:
        return []
    look_for = (
        "The labels stay on or above the line that the schedule wants; where they touch it, PPO has waited. Dotted "
        "lines are reward trainings, each on all labels so far."
    )
    labels = Plot("labels", "Labels", look_for, render_png(_draw_labels, rows, collection.trainings))
    return [labels, *curve_plots(rows, WIN_RATE, "episode", "episodes", {"even": 0.5})]


def accuracy_plot(collection: Collection | None, chance: float | None) -> list[Plot]:
    """Accuracy of each reward model on the same held-out labels, with its interval; none where none was measured."""
    trainings = [] if collection is None else [row for row in collection.trainings if "accuracy" in row]
    if not trainings:
        return []
    look_for = (
        "More labels should make better reward models. All are measured on the same held-out labels of the start."
    )
    png = render_png(_draw_accuracy, trainings, chance)
    return [Plot("reward_accuracy_by_labels", "Accuracy of each reward model", look_for, png)]


def _draw_labels(axes: Axes, rows: Sequence[Row], trainings: Sequence[Mapping[str, Any]]) -> None:
    for row in trainings:
        axes.axvline(row["episode"], color=GREY, linewidth=0.9, linestyle=":", zorder=1)
    # The wanted line is thin and on top, so that both show where they lie on each other.
    for key, label, color, width in (
        ("online/labels", "there", BLUE, 3.0),
        ("online/labels_wanted", "wanted", ORANGE, 1.2),
    ):
        times, values = series(rows, key, "episode")
        axes.plot(times, values, color=color, linewidth=width, label=label, zorder=3)
    axes.set(xlabel="episodes", ylabel="labels")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_accuracy(axes: Axes, trainings: Sequence[Mapping[str, Any]], chance: float | None) -> None:
    labels, value, low, high = (
        np.array([row[key] for row in trainings]) for key in ("labels", "accuracy", "low", "high")
    )
    axes.errorbar(labels, value, yerr=[value - low, high - value], fmt="o-", color=INK, capsize=3, zorder=3)
    if chance is not None:
        axes.axhline(chance, color=RED, linewidth=1.2, linestyle=(0, (5, 3)), label=f"chance {chance:g}", zorder=2)
        axes.legend(frameon=False, fontsize=9, loc="best")
    axes.set(xlabel="labels it was trained on", ylabel="share of held-out labels matched")
    axes.set_ylim(0.0, 1.03)
