"""One self-contained HTML page, and its plots, from the directory of a finished or unfinished run.

Read, where present: `metrics.json`, `policy/log_history.json`, `reward/log_history.json`, `evaluate/frontier.json`,
`samples.jsonl`, `config.yaml`; where labels were collected online, `policy/collection`. A policy that is not finished
is read from `policy.partial`. A section whose file is absent is left out with a note. Model output is text of unknown
content: everything is escaped, and the page's security policy allows no script and no request.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from .._files import write_bytes
from .pipeline import parse_json, read_json
from .report_alarms import find_alarms
from .report_online import (
    COLLECTION,
    accuracy_plot,
    collection_plots,
    labelling_rows,
    read_collection,
    stop_alarm,
)
from .report_plots import Plot, frontier_plot, policy_plots, reward_plots
from .report_summaries import copied_share_plot, copy_positions_plot, training_plots

SAMPLE_ROWS = 25
FIGURES_OF_SUMMARIES = {
    "rouge": ("rouge1", "rouge2", "rougeL", "mean"),
    "copying": ("copied_share", "longest_run", "starts_with_first", "invented_facts"),
}
"""What the table of models shows of `metrics.Rouge` and `metrics.Copying`; the rest is in metrics.json."""


@dataclass(frozen=True)
class Figure:
    """One line of the headline table: what was measured, its value, a note on it, and what good looks like."""

    name: str
    value: str
    note: str
    look_for: str


@dataclass(frozen=True)
class Samples:
    """The first rows of `samples.jsonl`, each a prompt and one `(text, score or None)` per model; `total` exist."""

    models: list[str]
    rows: list[tuple[str, list[tuple[str, float | None]]]]
    total: int


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` and `plots/*.png` for one run, each file in one piece.

    Args:
        run_dir: directory of the run; any part of its files may be absent.

    Returns:
        Path of the page, which refers to no other file.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: a file there is not valid JSON; the message names it.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise FileNotFoundError(
            f"`run_dir` is {str(run)!r}: no such directory; give the --output_dir of a recipe's run."
        )
    page, plots = _render_page(run)
    (run / "plots").mkdir(exist_ok=True)
    for plot in plots:
        write_bytes(run / "plots" / f"{plot.name}.png", plot.png)
    write_bytes(run / "report.html", page.encode("utf-8", "replace"))  # a lone surrogate becomes "?"
    return run / "report.html"


def _render_page(run: Path) -> tuple[str, list[Plot]]:
    metrics = read_json(run / "metrics.json") or {}
    policy = run / ("policy" if (run / "policy").is_dir() else "policy.partial")
    policy_log = read_json(policy / "log_history.json") or []
    collection = read_collection(policy / COLLECTION)
    reward_log = read_json(run / "reward" / "log_history.json") or (collection.reward_log if collection else [])
    chance = metrics.get("reward_model", {}).get("chance")
    frontier = read_json(run / "evaluate" / "frontier.json")
    sections = {
        "policy": [*policy_plots(policy_log, metrics.get("kl_target")), *training_plots(policy_log)],
        "frontier": [frontier_plot(frontier, metrics.get("frontier", {}))] if frontier else [],
        "collection": collection_plots(policy_log, collection),
        "reward": [*accuracy_plot(collection, chance), *reward_plots(reward_log, chance)],
        "summaries": copying_plots(metrics.get("copying", {})),
    }
    config = run / "config.yaml"
    page = page_template("report.html.jinja").render(
        run=run.resolve().name,
        metrics=metrics,
        headline=headline_figures(metrics),
        models=model_table(metrics),
        stages=stage_shares(metrics),
        alarms=[*stop_alarm(collection, metrics.get("stopped")), *find_alarms(policy_log, metrics)],
        checked=bool(policy_log),
        sections=sections,
        samples=read_samples(run / "samples.jsonl"),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
    )
    return page, list(itertools.chain.from_iterable(sections.values()))


def copying_plots(copying: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """What the models copy, where the whole result of `Copying` is there for them."""
    whole = {name: figures for name, figures in copying.items() if "copy_positions" in figures}
    return [copy_positions_plot(whole), copied_share_plot(whole)] if whole else []


def page_template(name: str) -> Template:
    """A page's template of this folder, with the filters that write numbers; everything it is given is escaped."""
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "base64": lambda png: base64.b64encode(png).decode("ascii"),
    }
    return environment.get_template(name)


def headline_figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """The lines of the headline table that `metrics` has the numbers for, in the order of interest."""
    at_equal_length = metrics.get("win_rate_at_equal_length", {})
    figures = [
        _win_rate(name, entry, at_equal_length.get(name)) for name, entry in metrics.get("win_rate", {}).items()
    ]
    if metrics.get("kl") is not None:
        figures.append(_kl(metrics["kl"], metrics.get("kl_target")))
    if "frontier" in metrics:
        figures.append(_frontier_fraction(metrics["frontier"]))
    for key, name in (("reward_model", "Reward-model accuracy"), ("classifier", "Classifier accuracy")):
        if "accuracy" in metrics.get(key, {}):  # a ready classifier was not measured
            figures.append(_accuracy(name, metrics[key]))
    for predictor, entry in metrics.get("predictors", {}).items():
        figures.append(replace(_accuracy(f"Labels guessed by {predictor}", entry), look_for="below the reward model"))
    return [*figures, *(Figure(*row) for row in labelling_rows(metrics.get("labelling")))]


def _win_rate(baseline: str, entry: Mapping[str, Any], at_equal_length: Mapping[str, Any] | None) -> Figure:
    note = f"95% interval {number(entry.get('low'))} to {number(entry.get('high'))}, n = {entry.get('n', '–')} queries"
    if at_equal_length is not None:
        note += f"; {number(at_equal_length['value'])} at equal lengths"
    return Figure(f"Win rate against {baseline}", number(entry["value"]), note, "above 0.5 with its whole interval")


def _kl(kl: float, target: float | None) -> Figure:
    if target is None:
        return Figure(
            "KL from the reference", number(kl), "nats per response; β fixed, no target", "low for the score reached"
        )
    note = f"nats per response; target {target:g} ({kl / target - 1:+.0%})"
    return Figure("KL from the reference", number(kl), note, "at most 10% over the target")


def _frontier_fraction(frontier: Mapping[str, Any]) -> Figure:
    good = "near 1: the optimum at this KL"
    if frontier.get("fraction") is None:
        reason = frontier.get("reason") or "no optimum could be estimated at this KL"
        return Figure("Share of the attainable gain", "–", reason, good)
    note = f"mean score {number(frontier.get('reached'))} of {number(frontier.get('optimum'))} at the optimum"
    if frontier.get("effective_samples") is not None:
        note += f"; {frontier['effective_samples']:.0f} effective samples a query"
    return Figure("Share of the attainable gain", number(frontier["fraction"]), note, good)


def _accuracy(name: str, entry: Mapping[str, Any]) -> Figure:
    notes = []
    if entry.get("low") is not None:
        notes.append(f"95% interval {number(entry['low'])} to {number(entry['high'])}")
    if entry.get("chance") is not None:
        notes.append(f"chance {number(entry['chance'])}")
    notes.append(f"n = {entry.get('n', '–')} held-out records")
    return Figure(name, number(entry["accuracy"]), ", ".join(notes), "well above chance")


def model_table(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of each model: `columns` (headings) and `rows` (name, then a text per column, "–" if unknown)."""
    true = metrics.get("true_score", {})
    columns: dict[str, Mapping[str, Any]] = {
        "true score": {name: value for name, value in true.items() if not name.endswith("_generator")},
        "generator's truth": {
            name.removesuffix("_generator"): value for name, value in true.items() if name.endswith("_generator")
        },
        "length (tokens)": metrics.get("length", {}),
    }
    for group, keys in FIGURES_OF_SUMMARIES.items():
        by_model = metrics.get(group, {})
        known = [key for key in keys if any(key in entry for entry in by_model.values())]
        columns |= {heading(group, key): {model: entry.get(key) for model, entry in by_model.items()} for key in known}
    columns = {heading: values for heading, values in columns.items() if values}
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [[name, *(number(values.get(name)) for values in columns.values())] for name in names]
    return {"columns": list(columns), "rows": rows}


def heading(group: str, key: str) -> str:
    """A figure's column heading; "mean" alone would not say of what."""
    return f"{group} {key}" if key == "mean" else key.replace("_", " ")


def stage_shares(metrics: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """`(stage, seconds, share of all stages' time)` in the order of the run."""
    seconds = metrics.get("stage_seconds", {})
    total = sum(seconds.values()) or 1.0
    return [(stage, spent, spent / total) for stage, spent in seconds.items()]


def read_samples(path: Path) -> Samples | None:
    """The first `SAMPLE_ROWS` rows of a samples file, models in the order of the file; None without a file."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    rows = [parse_json(line, f"{path}, row {i}") for i, line in enumerate(lines[:SAMPLE_ROWS], start=1)]
    models = list(dict.fromkeys(key for row in rows for key, value in _texts(row)))
    shown = [
        (_text(row.get("prompt", "")), [(row.get(model, ""), row.get(f"{model}_score")) for model in models])
        for row in rows
    ]
    return Samples(models, shown, len(lines))


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in row.items() if key != "prompt" and isinstance(value, str))


def _text(prompt: str | Sequence[Any]) -> str:
    """A text prompt as it is, chat messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, indent=1)


def number(value: float | None) -> str:
    """Three significant digits at most for small numbers, thousands whole; "–" for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """`75.2` as `1 min 15 s`; "–" for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"
