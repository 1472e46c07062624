"""Variants of a recipe over several seeds: one table, its plots and the report of every run.

accelerate launch recipes/experiments.py --config recipes/configs/experiments/labels.yaml
accelerate launch recipes/experiments.py --config recipes/configs/experiments/noise.yaml --seeds 1 --cpu_threads 1
"""

from pathlib import Path

from trl_ziegler.experiments.comparison import run_comparison

if __name__ == "__main__":
    run_comparison(Path(__file__).parent / "configs")
