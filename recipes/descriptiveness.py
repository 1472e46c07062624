"""Stylistic continuation, descriptiveness: a simulated labeller's best-of-4 labels, a fine-tuned policy, its report.

accelerate launch recipes/descriptiveness.py  # the embedded laptop world, minutes on two cores
accelerate launch recipes/descriptiveness.py --config recipes/configs/descriptiveness/local.yaml \\
    --model DIR --documents FILE ...
"""

from pathlib import Path

from trl_ziegler.experiments.recipe import run_recipe

if __name__ == "__main__":
    run_recipe("descriptiveness", Path(__file__).parent / "configs" / "descriptiveness" / "laptop.yaml")
