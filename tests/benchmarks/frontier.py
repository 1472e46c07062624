"""Ours and stock TRL against the optimum: reward at each KL, at equal episodes, over seeds.

    python -m tests.benchmarks.frontier --seeds 1 2 3 --kl_coefs 0.15 0.3 0.6 --kl_targets 2 --episodes 10240

Everything up to the reward model is made once per seed by the laptop sentiment recipe. Then each trainer makes one run
per fixed beta from the same start, reward model and value network, with the recipe's rates and batches; ours makes one
per KL target too, which stock has not. Further flags (`--policy.optimizer hf`) are settings of our runs, for which
another `--output_dir` is needed. Finished runs are read back, so a killed benchmark continues. Leaves `results.json`,
`frontier.png` and two tables on the output: every setting, and our score less stock's at the KL of each stock run.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from trl_ziegler.experiments.arguments import StyleArguments, parse_recipe_arguments
from trl_ziegler.experiments.pipeline import read_jsonl, run_stages, write_json
from trl_ziegler.experiments.recipe import start_processes
from trl_ziegler.experiments.style import StyleExperiment
from trl_ziegler.kl_control import FixedKLController
from trl_ziegler.reward_wrapper import KLEntropyReward

from .stock_ppo import SHARED_OPTIONS, train_stock

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "configs" / "sentiment" / "laptop.yaml"
MADE_ONCE = ("classifier", "sft", "collect", "label", "reward")
TRAINERS = {"ours": ("#0072B2", "o"), "stock": ("#D55E00", "s")}


def recipe(seed: int, run_dir: Path, flags: list[str]) -> tuple[StyleArguments, StyleExperiment]:
    """The laptop recipe in `run_dir`, with further flags."""
    args, _ = parse_recipe_arguments(
        StyleArguments, CONFIG, ["--seed", str(seed), "--output_dir", str(run_dir), *flags]
    )
    return args, StyleExperiment("sentiment", args, run_dir)


class Setting(NamedTuple):
    """One run: who trains, on which seed, what holds the KL (a fixed `beta`, or a `target` of the adaptive one)."""

    trainer: str
    seed: int
    by: str
    value: float
    episodes: int

    @property
    def flags(self) -> list[str]:
        """The recipe's flags."""
        flags = ["--policy.total_episodes", str(self.episodes), "--policy.kl_target"]
        if self.by == "target":
            return [*flags, str(self.value)]
        return [*flags, "null", "--policy.kl_coef", str(self.value)]


def one_run(setting: Setting, further: list[str], shared: Path, run_dir: Path) -> dict[str, Any]:
    """Train and evaluate one policy; its point on the frontier."""
    result = run_dir / "point.json"
    mine = further if setting.trainer == "ours" else []
    if result.is_file():
        point = json.loads(result.read_text())
        if point["flags"] != mine:
            raise SystemExit(f"{run_dir} was made with the flags {point['flags']}; give another --output_dir.")
        return point
    if run_dir.exists():
        shutil.rmtree(run_dir)  # a run of this script that was cut off
    run_dir.mkdir(parents=True)
    for stage in MADE_ONCE:
        (run_dir / stage).symlink_to(shared.resolve() / stage)
    args, experiment = recipe(setting.seed, run_dir, [*setting.flags, *mine])
    (run_dir / "policy").mkdir()
    began = time.perf_counter()
    if setting.trainer == "ours":
        experiment.policy(run_dir / "policy")
    else:
        stock_policy(args, experiment, run_dir)
    seconds = time.perf_counter() - began
    (run_dir / "evaluate").mkdir()
    experiment.evaluate(run_dir / "evaluate")
    metrics = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
    curve = json.loads((run_dir / "evaluate" / "frontier.json").read_text())["kl_penalty_curve"]
    point = {
        **setting._asdict(), "flags": mine, "seconds": seconds, "win_rate": metrics["win_rate"]["zero_shot"]["value"],
        **metrics["frontier"], "curve": curve,
    }  # fmt: skip
    write_json(result, point)
    return point


def stock_policy(args: StyleArguments, experiment: StyleExperiment, run_dir: Path) -> None:
    """TRL's trainer with the recipe's settings, its own optimiser, and the method's score."""
    tokenizer = AutoTokenizer.from_pretrained(experiment.start_path())
    rows = read_jsonl(run_dir / "collect" / "train_queries.jsonl")[: args.num_policy_queries]
    rewards, _ = experiment.reward_functions()
    bound = experiment.task.bind(tokenizer)
    reward = KLEntropyReward(rewards[:1], [1.0], bound, tokenizer, FixedKLController(0.0), batch_size=args.batch_size)
    section = {"seed": args.seed, **args.section("policy")}
    train_stock(
        run_dir / "policy",
        experiment.start_path(),
        str(run_dir / "reward" / "model"),
        AutoTokenizer.from_pretrained(experiment.start_path()),
        [row["prompt_ids"] for row in rows],
        reward,
        experiment.task,
        {name: section[name] for name in SHARED_OPTIONS if name in section},
    )


def table(points: list[dict[str, Any]]) -> str:
    """Mean and range over seeds of KL, reward, frontier fraction and win rate, per trainer and setting."""
    lines = ["| trainer | held by | KL | score | frontier fraction | win rate | s |", "|---|---|---|---|---|---|---|"]
    for trainer in TRAINERS:
        for by, value in sorted({(point["by"], point["value"]) for point in points}):
            rows = [p for p in points if (p["trainer"], p["by"], p["value"]) == (trainer, by, value)]
            if rows:
                cells = [spread([row[key] for row in rows]) for key in ("kl", "reached", "fraction", "win_rate")]
                seconds = statistics.fmean(row["seconds"] for row in rows)
                lines.append(f"| {trainer} | {by} {value:g} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def at_equal_kl(points: list[dict[str, Any]]) -> str:
    """For each stock run, our score at its KL, on the line through the start model and our runs of that seed."""
    lines = ["| seed | stock's KL | stock's gain | our gain at that KL | difference |", "|---|---|---|---|---|"]
    for stock in sorted((p for p in points if p["trainer"] == "stock"), key=lambda p: (p["seed"], p["kl"])):
        ours = [p for p in points if p["trainer"] == "ours" and p["seed"] == stock["seed"]]
        kls, gains = zip(*sorted([(0.0, 0.0), *((p["kl"], p["reached"] - p["baseline"]) for p in ours)]), strict=True)
        if stock["kl"] <= kls[-1]:
            gain, mine = stock["reached"] - stock["baseline"], float(np.interp(stock["kl"], kls, gains))
            lines.append(f"| {stock['seed']} | {stock['kl']:.2f} | {gain:.3f} | {mine:.3f} | {mine - gain:+.3f} |")
    return "\n".join(lines)


def spread(values: list[float | None]) -> str:
    """`mean [smallest, largest]`, or a dash where a value has no estimate."""
    if any(value is None for value in values):
        return "–"
    numbers = [float(value) for value in values if value is not None]
    return f"{statistics.fmean(numbers):.3f} [{min(numbers):.3f}, {max(numbers):.3f}]"


def draw(points: list[dict[str, Any]], file: Path) -> None:
    """Gain over the start model against KL; one optimum curve per seed."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for seed in sorted({point["seed"] for point in points}):
        point = next(p for p in points if p["seed"] == seed)
        curve = sorted((row["kl"], row["reward"] - point["baseline"]) for row in point["curve"])
        label = "optimum (one line per seed)" if seed == min(p["seed"] for p in points) else None
        axes.plot(*zip(*curve, strict=True), color="#8A8A8A", linewidth=1, label=label)
    for trainer, (color, marker) in TRAINERS.items():
        mine = [p for p in points if p["trainer"] == trainer]
        gains = [p["reached"] - p["baseline"] for p in mine]
        edges = ["black" if p["by"] == "target" else color for p in mine]
        axes.scatter([p["kl"] for p in mine], gains, c=color, edgecolors=edges, marker=marker, label=trainer, zorder=3)
    axes.set(xlabel="KL (nats per response)", ylabel="score above the start model", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """All seeds, betas and trainers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kl_coefs", type=float, nargs="+", default=[0.15, 0.3, 0.6])
    parser.add_argument("--kl_targets", type=float, nargs="*", default=[])
    parser.add_argument("--episodes", type=int, default=10_240)
    parser.add_argument("--trainers", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--cpu_threads", type=int, default=None)
    options, further = parser.parse_known_args()
    parse_recipe_arguments(StyleArguments, CONFIG, further)  # which names a flag that nobody knows
    start_processes(options.cpu_threads)
    points = []
    for seed in options.seeds:
        shared = options.output_dir / f"seed-{seed}"
        _, experiment = recipe(seed, shared, [])
        shared.mkdir(parents=True, exist_ok=True)
        run_stages(shared, experiment.stages(), ",".join(MADE_ONCE))
        settings = [(t, "beta", value) for value in options.kl_coefs for t in options.trainers]
        if "ours" in options.trainers:
            settings += [("ours", "target", value) for value in options.kl_targets]
        for trainer, by, value in settings:
            run_dir = options.output_dir / f"seed-{seed}-{trainer}-{by}-{value}-{options.episodes}"
            setting = Setting(trainer, seed, by, value, options.episodes)
            points.append(one_run(setting, further, shared, run_dir))
            write_json(options.output_dir / "results.json", points)
            draw(points, options.output_dir / "frontier.png")
    print(table(points), at_equal_kl(points), sep="\n\n")
    print(f"Figure: {options.output_dir / 'frontier.png'}")


if __name__ == "__main__":
    main()
