"""Stylistic continuation, sentiment: a simulated labeller's best-of-4 labels, a fine-tuned policy, its report.

accelerate launch recipes/sentiment.py  # the embedded laptop world, minutes on two cores
accelerate launch recipes/sentiment.py --config recipes/configs/sentiment/local.yaml \\
    --model DIR --documents FILE ...
"""

from pathlib import Path

from trl_ziegler.experiments.recipe import run_recipe

if __name__ == "__main__":
    run_recipe("sentiment", Path(__file__).parent / "configs" / "sentiment" / "laptop.yaml")
