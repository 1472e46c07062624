"""Summarization, TL;DR: a supervised baseline, a reward model from best-of-4 labels, RL, and what they copy.

accelerate launch recipes/tldr.py  # the embedded laptop world, minutes on two cores
accelerate launch recipes/tldr.py --config recipes/configs/tldr/local.yaml --model DIR --documents FILE ...
"""

from pathlib import Path

from trl_ziegler.experiments.recipe import run_recipe

if __name__ == "__main__":
    run_recipe("tldr", Path(__file__).parent / "configs" / "tldr" / "laptop.yaml")
