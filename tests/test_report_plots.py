"""The frontier plot of a run's report, looked at before it becomes pixels."""

import json

import pytest

from trl_ziegler.experiments import report_plots
from trl_ziegler.experiments.report import write_report

CURVE = [{"beta": b, "kl": 2 / b, "reward": 2 / b**0.5} for b in (8.0, 2.0, 1.0, 0.6)]
POINTS = [{"name": "zero_shot", "kl": 0.0, "reward": 0.0}, {"name": "policy", "kl": 2.7, "reward": 1.9}]


@pytest.fixture
def axes(tmp_path, monkeypatch):
    """The axes of a run whose policy has another KL on all held-out queries than on those of the frontier."""
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "frontier.json").write_text(json.dumps({"kl_penalty_curve": CURVE, "points": POINTS}))
    summary = {"fraction": 0.83, "kl": 2.7, "reached": 1.9, "optimum": 2.3}
    (tmp_path / "metrics.json").write_text(json.dumps({"kl": 2.5, "frontier": summary}))
    kept, draw = [], report_plots.draw_frontier

    def note(axes, *content):
        draw(axes, *content)
        kept.append(axes)

    monkeypatch.setattr(report_plots, "draw_frontier", note)
    write_report(tmp_path)
    return kept[0]


def test_the_optimum_is_marked_right_above_the_policy(axes):
    marks = {line.get_marker(): line for line in axes.lines}
    assert list(marks["*"].get_xdata()) == [2.7] and list(marks["*"].get_ydata()) == [2.3]
    dotted = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert list(dotted.get_xdata()) == [2.7, 2.7] and list(dotted.get_ydata()) == [1.9, 2.3]


def test_names_of_points_stay_clear_of_the_axes(axes):
    inside = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_window_extent()
        assert inside.y0 < box.y0 and box.y1 < inside.y1, text.get_text()
        assert inside.x0 < box.x0, text.get_text()
