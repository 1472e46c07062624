"""What is measured on finished models and labels; knows no trainer and no labeller, asks no hub."""

from .best_of_k import BestOfKAccuracy, wilson_interval
from .frontier import Frontier, Optimum, exact_frontier, frontier_fraction, optimum_at, sampled_frontier
from .win_rate import WinRate

__all__ = [
    "BestOfKAccuracy",
    "Frontier",
    "Optimum",
    "WinRate",
    "exact_frontier",
    "frontier_fraction",
    "optimum_at",
    "sampled_frontier",
    "wilson_interval",
]
