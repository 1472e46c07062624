"""The main function that the recipes share: arguments in, run directory and report out."""

import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from .._files import write_text
from ..labelers import LabellingStopped
from .arguments import RecipeArguments, parse_recipe_arguments
from .cards import add_evaluation
from .experiment import Experiment
from .labelling import labelling_of_run
from .pipeline import MANIFEST, run_stages, versions, write_json, write_yaml
from .report import write_report
from .style import StyleExperiment
from .summaries import SummaryExperiment

LAST_TENSORS = 1.0
"""Seconds within which gloo's threads have let go of their tensors; milliseconds, unless the machine is busy."""

LONGEST_WAIT = timedelta(days=365)
"""How long processes wait for each other. The first one alone samples candidates, for hours, and waits for people, for
weeks; the ten minutes that NCCL grants by default would end the run. A process that dies is not waited for: the
launcher ends the others."""

EXPERIMENTS: tuple[type[Experiment], ...] = (StyleExperiment, SummaryExperiment)


def run_recipe(task: str, default_config: Path, argv: Sequence[str] | None = None) -> Path:
    """Run a recipe from its command line to its report, and take the processes apart.

    Where a labeller asks to stop, the report is made of what is there, and the process ends with status 1.
    """
    report, stopped = run_to_report(task, default_config, argv)
    end_processes(PartialState())
    if stopped is not None:
        raise SystemExit(stopped)
    return report


def run_to_report(task: str, default_config: Path, argv: Sequence[str] | None = None) -> tuple[Path, str | None]:
    """Run a recipe's stages and write the report; the last line printed is `Report: <path>`.

    Returns:
        The report, and what to say of a labeller's request to stop, if there was one.
    """
    kind = next(kind for kind in EXPERIMENTS if task in kind.tasks)
    args, config_name = parse_recipe_arguments(kind.arguments, default_config, argv)
    run_dir = Path(args.output_dir or Path("runs", task, config_name))
    state = start_processes(args.cpu_threads)
    experiment = kind(task, args, run_dir)
    if state.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_yaml(run_dir / "config.yaml", args.as_dict())
    start = time.perf_counter()
    stages = experiment.stages()
    reason = None
    try:
        run_stages(run_dir, stages, args.stages, args.reuse_from)
    except LabellingStopped as stop:
        reason = str(stop)
    report = run_dir / "report.html"
    if state.is_main_process:
        names = [stage.name for stage in stages]
        write_results(run_dir, task, config_name, args, names, time.perf_counter() - start, reason)
        report = write_report(run_dir)
    state.wait_for_everyone()
    state.print(f"Report: {report}")
    if reason is None:
        return report, None
    return report, f"A labeller stopped this run: {reason} The same command goes on from here."


def start_processes(cpu_threads: int | None) -> PartialState:
    """This process's place among those of the run; on a CPU, torch gets its share of the cores.

    `accelerate launch` limits torch to one thread, and on a CPU starts one process whatever `--num_processes` says.

    Raises `RuntimeError` where more processes were asked for than work together.
    """
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # The launcher names a meeting point when it was asked for several processes, even if it starts one.
    if state.num_processes < asked or ("MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ):
        raise RuntimeError(
            f"Several processes were asked for, but {state.num_processes} is at work: on a CPU, launch with "
            "`accelerate launch --config_file recipes/accelerate/two_cpu_processes.yaml`."
        )
    if state.device.type == "cpu":
        threads = cpu_threads or max(1, available_cores() // state.num_processes)
        torch.set_num_threads(threads)
        state.print(f"Using {threads} CPU threads in each of {state.num_processes} processes.")
    return state


def available_cores() -> int:
    """Cores that this process may use; all of the machine's where only Linux could tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_processes(state: PartialState) -> None:
    """Take the process group down, so that the interpreter can end.

    A thread of gloo frees the tensors of a collective a moment after that has returned, for which it needs the
    interpreter's lock. If that is ending by then, Python before 3.14 ends the thread inside C++ code and the
    process aborts ("terminate called without an active exception"), though all its work is done. Taking the group
    down would wait for that thread, but a model in DDP still holds the group; hence the pause.
    """
    if state.num_processes > 1:
        time.sleep(LAST_TENSORS)
        state.destroy_process_group()


def write_results(
    run_dir: Path,
    task: str,
    config_name: str,
    args: RecipeArguments,
    stages: list[str],
    seconds: float,
    stopped: str | None,
) -> None:
    """Gather the stages' results into `metrics.json` and `samples.jsonl` at the top of the run directory.

    `stopped`, why a labeller ended the run, is there until the run has gone on: its stage may leave no trace of it.
    """
    metrics: dict[str, Any] = {"task": task, "config": config_name, "seed": args.seed}
    if stopped is not None:
        metrics["stopped"] = stopped
    if (run_dir / "evaluate" / MANIFEST).is_file():
        metrics.update(read_metrics(run_dir / "evaluate"))
        samples = (run_dir / "evaluate" / "samples.jsonl").read_text(encoding="utf-8")
        write_text(run_dir / "samples.jsonl", samples)
        if (card := run_dir / "policy" / "model" / "README.md").is_file():
            add_evaluation(card, metrics)
    if (run_dir / "policy" / MANIFEST).is_file() and (run_dir / "policy" / "metrics.json").is_file():
        metrics.update(read_metrics(run_dir / "policy"))
    metrics["kl_target"] = args.section("policy").get("kl_target")
    if (run_dir / "classifier" / MANIFEST).is_file() and "classifier" in stages:
        metrics["classifier"] = read_metrics(run_dir / "classifier")
    if (run_dir / "reward" / MANIFEST).is_file() and "reward" in stages:
        metrics["reward_model"] = read_metrics(run_dir / "reward")
    labelling = labelling_of_run(run_dir, task, args, stages)
    if labelling is not None:
        metrics["labelling"] = labelling
    manifests = {name: run_dir / name / MANIFEST for name in stages}
    metrics["stage_seconds"] = {
        name: json.loads(path.read_text())["seconds"] for name, path in manifests.items() if path.is_file()
    }
    metrics["wall_seconds"] = round(seconds, 2)
    metrics["versions"] = versions()
    write_json(run_dir / "metrics.json", metrics)


def read_metrics(folder: Path) -> dict[str, Any]:
    """A stage's `metrics.json`."""
    return json.loads((folder / "metrics.json").read_text())
