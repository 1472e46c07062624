"""The plots of a summarization run, read back from their axes."""

import io
import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_report import METRICS, write_run

from trl_ziegler.experiments.report import model_table, write_report
from trl_ziegler.experiments.report_plots import BLUE, ORANGE, RED, policy_plots
from trl_ziegler.experiments.report_summaries import (
    NGRAM_BLUES,
    POSITION_BINS,
    ROW_FILL,
    copied_share_plot,
    copy_positions_plot,
    draw_copied_share,
    draw_copy_positions,
    training_plots,
)
from trl_ziegler.metrics import Copying, Rouge

PNG = b"\x89PNG\r\n\x1a\n"
MODELS = {
    "zero_shot": {
        "copied_share": 0.04,
        "novel_ngrams": [0.3, 0.6, 0.8, 0.9, 0.95],
        "copy_positions": [0.0, 0.01, 0.02, 0.5, 0.99],
        "sentences": 125,
    },
    "$policy$": {
        "copied_share": 0.8,
        "novel_ngrams": [0.05, 0.1, 0.15, None, None],
        "copy_positions": [0.0, 0.32],
        "sentences": 5,
    },
    "reference": {"copied_share": None, "novel_ngrams": [None] * 5, "copy_positions": [], "sentences": 0},
}
ROWS = [{"episode": 1000 * i, "copied_share": 0.1 * i, "rouge_mean": 0.3 - 0.01 * i} for i in range(9)]


@pytest.fixture
def axes():
    return Figure().add_subplot()


def texts(axes):
    return [text.get_text() for text in axes.texts]


class TestCopyPositions:
    def test_axes_and_rows_are_labelled(self, axes):
        draw_copy_positions(axes, MODELS)
        assert "start in the source" in axes.get_xlabel()
        assert axes.get_ylabel() == "share of a model's copies"
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "zero_shot\n5 of 125 sentences",
            "$policy$\n2 of 5 sentences",
            "reference\n0 of 0 sentences",
        ]
        assert [round(tick) for tick in axes.get_yticks()] == [2, 1, 0]

    def test_bars_are_shares_of_a_models_copies_on_one_scale(self, axes):
        draw_copy_positions(axes, MODELS)
        first, second = axes.containers
        heights = np.array([bar.get_height() for bar in first]) / ROW_FILL * 0.6  # the tallest bar of all is 3 of 5
        expected = np.zeros(POSITION_BINS)
        expected[[0, POSITION_BINS // 2, POSITION_BINS - 1]] = [0.6, 0.2, 0.2]
        assert heights == pytest.approx(expected)
        assert [bar.get_height() / ROW_FILL * 0.6 for bar in second if bar.get_height()] == pytest.approx([0.5, 0.5])
        assert [bar.get_x() for bar in second if bar.get_height()] == pytest.approx([0.0, 0.3])

    def test_models_stand_in_their_order_from_the_top(self, axes):
        draw_copy_positions(axes, MODELS)
        assert [bars[0].get_y() for bars in axes.containers] == [2, 1]
        assert texts(axes) == ["60%", "50%", "no copied sentences"]

    def test_no_copies_at_all_are_said_for_each_model(self, axes):
        draw_copy_positions(axes, {name: MODELS["reference"] for name in "ab"})
        assert texts(axes) == ["no copied sentences"] * 2


@pytest.mark.parametrize("draw", [draw_copy_positions, draw_copied_share])
def test_dollars_in_names_are_no_mathematics(axes, draw):
    draw(axes, {"$policy$": MODELS["$policy$"]})
    labels = [label for label in (*axes.get_xticklabels(), *axes.get_yticklabels()) if "policy" in label.get_text()]
    assert [label.get_parse_math() for label in labels] == [False]


class TestCopiedShare:
    def test_axes_models_and_bars_are_labelled(self, axes):
        draw_copied_share(axes, MODELS)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("model", "share (%)")
        assert [label.get_text() for label in axes.get_xticklabels()] == list(MODELS)
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["copied sentences", *(f"novel {n}-grams" for n in range(1, 6))]

    def test_bars_are_percentages_and_unknown_shares_are_dashes(self, axes):
        draw_copied_share(axes, MODELS)
        copied, *novel = axes.containers
        assert [bar.get_height() for bar in copied] == pytest.approx([4, 80, 0])
        assert [bars[0].get_height() for bars in novel] == pytest.approx([30, 60, 80, 90, 95])
        assert texts(axes)[:3] == ["4", "80", "–"]
        assert texts(axes)[-3:] == ["95", "–", "–"]

    def test_bars_of_a_model_stand_around_its_name_and_do_not_overlap(self, axes):
        draw_copied_share(axes, MODELS)
        edges = [(bars[1].get_x(), bars[1].get_x() + bars[1].get_width()) for bars in axes.containers]
        assert np.mean(edges) == pytest.approx(1.0)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(edges))
        assert edges[-1][1] - edges[0][0] < 1

    def test_blues_differ_in_lightness_so_that_no_colour_must_be_told_from_another(self):
        lightness = [np.dot(to_rgb(color), [0.2126, 0.7152, 0.0722]) for color in NGRAM_BLUES]
        assert (np.diff(lightness) > 0.08).all()


@pytest.mark.parametrize("plot", [copy_positions_plot, copied_share_plot])
class TestPlots:
    def test_png_comes_with_a_title_and_what_to_look_for(self, plot):
        made = plot(MODELS)
        assert made.png.startswith(PNG) and len(made.png) > 5000
        assert made.title and made.look_for.endswith(".")

    def test_no_model_is_refused(self, plot):
        with pytest.raises(ValueError, match="`models` is empty: give the copying figures of at least one model"):
            plot({})


class TestTraining:
    def test_each_logged_quantity_has_its_plot(self):
        assert [plot.name for plot in training_plots(ROWS)] == ["copied_share", "rouge_mean"]
        assert [plot.name for plot in training_plots([{"eval_rouge_mean": 0.3, "episode": 64}])] == ["rouge_mean"]
        assert training_plots([]) == training_plots([{"objective/kl": 1.0, "episode": 64}]) == []

    def test_threshold_is_drawn_into_the_copied_share_only(self):
        red = [
            np.abs(imread(io.BytesIO(plot.png))[..., :3] - to_rgb(RED)).max(axis=-1) for plot in training_plots(ROWS)
        ]
        assert (red[0] < 0.02).sum() > 200
        assert (red[1] < 0.02).sum() == 0

    def test_titles_are_given(self):
        assert [plot.title for plot in training_plots(ROWS)] == [
            "Copied sentences during training",
            "ROUGE during training",
        ]


def test_dots_of_two_held_out_series_can_be_told_apart_where_they_lie_on_each_other():
    rows = [{"eval_objective/scores": 1.0, "eval_score/raw": 1.0, "episode": episode} for episode in (64, 128)]
    (plot,) = policy_plots(rows, None)
    image = imread(io.BytesIO(plot.png))[..., :3]
    for color in (BLUE, ORANGE):
        assert (np.abs(image - to_rgb(color)).max(axis=-1) < 0.02).sum() > 50


def test_a_summarizers_page_shows_what_it_copies(tmp_path):
    write_run(tmp_path)
    copying = Copying().compute(predictions=["The cat sat. It slept."], sources=["The cat sat. The dog ran."])
    rouge = Rouge().compute(predictions=["the cat sat"], references=["the cat sat"])
    metrics = {**METRICS, "copying": {"policy": copying}, "rouge": {"policy": rouge}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Copying</h2>" in page and "Where copied sentences come from" in page
    columns = model_table(metrics)["columns"]
    assert "copied share" in columns and "tokenizer" not in columns and "copy positions" not in columns
