"""What is measured on finished models and labels; knows no trainer and no labeller, asks no hub."""

from .agreement import Agreement, fleiss_kappa
from .best_of_k import BestOfKAccuracy, wilson_interval
from .copying import Copying, copier_alarm
from .frontier import Frontier, Optimum, exact_frontier, frontier_fraction, optimum_at, sampled_frontier
from .length_control import LengthControlledWinRate
from .pair_accuracy import PairAccuracy
from .rouge import Rouge
from .win_rate import WinRate

__all__ = [
    "Agreement",
    "BestOfKAccuracy",
    "Copying",
    "Frontier",
    "LengthControlledWinRate",
    "Optimum",
    "PairAccuracy",
    "Rouge",
    "WinRate",
    "copier_alarm",
    "exact_frontier",
    "fleiss_kappa",
    "frontier_fraction",
    "optimum_at",
    "sampled_frontier",
    "wilson_interval",
]
