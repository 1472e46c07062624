"""Several variants of one recipe, each with several seeds, in one table with plots.

    accelerate launch recipes/experiments.py --config recipes/configs/experiments/labels.yaml [--seeds 1 2]

A variant is the recipe's configuration with a few other settings. Every run has a directory and a report of its own,
`<output_dir>/<variant>/seed-<seed>`; what two of them have in common is made once (`reuse_from`). After each run the
page, its plots and `metrics.json` are written anew, and a second call skips what is finished.
"""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .._files import write_bytes
from .arguments import SectionedArguments, parse_recipe_arguments
from .comparison_plots import Curves, curves_plot, seeds_plot
from .pipeline import read_json, versions, write_json
from .recipe import EXPERIMENTS, end_processes, run_to_report, start_processes
from .report import page_template
from .report_plots import Plot

Figures = Mapping[str, Any]
SECONDS = "seconds"


@dataclass
class ComparisonArguments(SectionedArguments):
    """What is compared. Settings are those of the recipe, its sections as mappings or as `section.key`."""

    sections: ClassVar[tuple[str, ...]] = ("settings", "variants", "measures")

    title: str = field(default="", metadata={"help": "Heading of the page; default the name of the config file."})
    task: str = field(default="sentiment", metadata={"help": "The recipe."})
    scale: str = field(default="laptop", metadata={"help": "Its configuration: recipes/configs/<task>/<scale>.yaml."})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Each variant runs with each."})
    only: list[str] = field(default_factory=list, metadata={"help": "Variants to run now; default all."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Directory of the runs and the page; default runs/experiments/<config name>."}
    )
    cpu_threads: int | None = field(default=None, metadata={"help": "As in the recipes."})
    settings: dict | str | None = field(default=None, metadata={"help": "Section: settings of every run."})
    variants: dict | str | None = field(
        default=None, metadata={"help": "Section: name to the settings in which this variant differs."}
    )
    measures: dict | str | None = field(
        default=None, metadata={"help": "Section: column of the table to its place in the runs' metrics.json, a.b.c."}
    )
    curves: list[dict] = field(
        default_factory=list,
        metadata={"help": "Plots of the training logs, in YAML: title, look_for, x and y, keys of the log."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.section("variants"):
            raise ValueError("`variants` is empty; name at least one, with the settings in which it differs.")
        unknown = [name for name in self.only if name not in self.section("variants")]
        if unknown:
            raise ValueError(f"`only` names '{unknown[0]}'; the variants are {', '.join(self.section('variants'))}.")
        bad = [name for name in self.section("variants") if Path(name).name != name or name.startswith(".")]
        if bad:
            raise ValueError(f"`variants` has {bad[0]!r}, which is no name for a directory; choose another.")

    @property
    def chosen(self) -> list[str]:
        """The variants to run."""
        return self.only or list(self.section("variants"))


@dataclass(frozen=True)
class Run:
    """A finished run: `metrics` of its `metrics.json`, `log` of its policy."""

    variant: str
    seed: int
    metrics: dict[str, Any]
    log: list[dict[str, Any]]


def run_comparison(configs: Path, argv: Sequence[str] | None = None) -> Path:
    """Run what a command line asks for, and write the page; the last line printed is `Comparison: <path>`.

    Args:
        configs: Folder of the recipes' configurations.
        argv: The command line; default this process's.

    Raises:
        ValueError: an unknown task, scale, variant or setting.
    """
    args, name = parse_recipe_arguments(ComparisonArguments, configs / "experiments" / "labels.yaml", argv)
    tasks = [task for kind in EXPERIMENTS for task in kind.tasks]
    if args.task not in tasks:
        raise ValueError(f"`task` is '{args.task}'; the recipes are {', '.join(tasks)}.")
    config = configs / args.task / f"{args.scale}.yaml"
    if not config.is_file():
        raise ValueError(f"`scale` is '{args.scale}', but there is no {config}; give the name of a file there.")
    folder = Path(args.output_dir or Path("runs", "experiments", name))
    page = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)  # what runs reuse is looked for beside it
    state = start_processes(args.cpu_threads)
    # Seeds go last, so that there is something to compare after the first of them.
    for seed, variant in itertools.product(args.seeds, args.chosen):
        state.print(f"== {variant}, seed {seed}")
        _, stopped = run_to_report(args.task, config, flags_of_run(args, folder, variant, seed))
        if state.is_main_process:
            page = write_comparison(folder, args, args.title or name)
        if stopped is not None:
            raise SystemExit(stopped)
    for sentence in unknown_measures(finished_runs(folder, args), args.section("measures")):
        state.print(sentence)
    state.print(f"Comparison: {page}")
    end_processes(state)
    return page


def flags_of_run(args: ComparisonArguments, folder: Path, variant: str, seed: int) -> list[str]:
    """The recipe's command line for one run."""
    threads = {} if args.cpu_threads is None else {"cpu_threads": args.cpu_threads}
    own = {"output_dir": run_dir_of(folder, variant, seed), "reuse_from": folder.parent, "seed": seed, **threads}
    return [
        *flags_of(args.section("settings")),
        *flags_of(args.section("variants")[variant] or {}),
        *flags_of(own),
    ]


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags: sections key by key, lists as several values.

    >>> flags_of({"num_labels": 64, "policy": {"kl_target": None}, "starts": ["a", "b"]})
    ['--num_labels', '64', '--policy.kl_target', 'null', '--starts', 'a', 'b']
    """
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flags += itertools.chain.from_iterable((f"--{name}.{k}", json.dumps(v)) for k, v in value.items())
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", json.dumps(value) if "." in name else str(value)]
    return flags


def run_dir_of(folder: Path, variant: str, seed: int) -> Path:
    """Directory of one run."""
    return folder / variant / f"seed-{seed}"


def finished_runs(folder: Path, args: ComparisonArguments) -> list[Run]:
    """All runs that have come to their end, in the order of the variants, also of seeds not asked for now."""
    runs = []
    for variant in args.section("variants"):
        for path in sorted(folder.glob(f"{variant}/seed-*"), key=lambda path: int(path.name.removeprefix("seed-"))):
            metrics, log = read_json(path / "metrics.json"), read_json(path / "policy" / "log_history.json")
            if metrics is not None and log is not None and "true_score" in metrics:
                runs.append(Run(variant, metrics["seed"], metrics, log))
    return runs


def write_comparison(folder: Path, args: ComparisonArguments, title: str) -> Path:
    """Write `report.html`, `metrics.json` and `plots/*.png` of the runs that are finished; returns the page."""
    runs = finished_runs(folder, args)
    results = summarize(runs, args.section("measures"))
    plots = plots_of(runs, results, args)
    write_json(folder / "metrics.json", {"title": title, "variants": results, "versions": versions()})
    page = page_template("comparison.html.jinja").render(
        title=title,
        measures=[*args.section("measures"), SECONDS],
        variants=results,
        plots=plots,
        settings={name: " ".join(flags_of(args.section("variants")[name] or {})) for name in results},
        common=" ".join([args.task, args.scale, *flags_of(args.section("settings"))]),
        versions=versions(),
    )
    (folder / "plots").mkdir(exist_ok=True)
    for plot in plots:
        write_bytes(folder / "plots" / f"{plot.name}.png", plot.png)
    write_bytes(folder / "report.html", page.encode("utf-8", "replace"))
    return folder / "report.html"


def summarize(runs: Sequence[Run], measures: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Per variant its `seeds`, and per measure `values` of the seeds that have it, their `mean`, `low` and `high`.

    Last comes `SECONDS`, what all stages took where they were run, also those of which this run has a copy.
    """
    results: dict[str, dict[str, Any]] = {}
    for variant, group in itertools.groupby(runs, key=lambda run: run.variant):
        own = list(group)
        figures = {name: [value_at(run.metrics, place) for run in own] for name, place in measures.items()}
        figures[SECONDS] = [sum(run.metrics["stage_seconds"].values()) for run in own]
        results[variant] = {
            "seeds": [run.seed for run in own],
            "measures": {name: over_seeds([v for v in values if v is not None]) for name, values in figures.items()},
        }
    return results


def unknown_measures(runs: Sequence[Run], measures: Mapping[str, str]) -> list[str]:
    """A sentence for each measure that no run has, though some run has others beside it: a misspelt one."""
    sentences = []
    for name, place in measures.items():
        parent, _, key = place.rpartition(".")
        parents = [value_at(run.metrics, parent) if parent else run.metrics for run in runs]
        beside = [found for found in parents if isinstance(found, Mapping)]
        if beside and not any(key in found for found in beside):
            known = sorted({other for found in beside for other in found})
            sentences.append(f"No run has the measure '{name}', `{place}`; beside it there are {known}.")
    return sentences


def over_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and range; None of nothing."""
    if not values:
        return None
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values), "values": list(values)}


def value_at(metrics: Figures, place: str) -> Any:
    """What stands at `a.b.c`, a number or a mapping; None where a run has nothing."""
    found: Any = metrics
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def plots_of(runs: Sequence[Run], results: Mapping[str, Figures], args: ComparisonArguments) -> list[Plot]:
    """The curves that the configuration asks for, and the seeds of the first measure."""
    logs = {
        variant: [run.log for run in group] for variant, group in itertools.groupby(runs, key=lambda run: run.variant)
    }
    plots = [curves_plot(f"curves-{i}", Curves(**spec), logs) for i, spec in enumerate(args.curves, start=1)]
    for name in list(args.section("measures"))[:1]:
        values = {variant: result["measures"][name] for variant, result in results.items()}
        plots.append(seeds_plot("seeds", name, {key: value for key, value in values.items() if value is not None}))
    return plots
