"""Simulated labellers and the scores they label by. Nothing here knows a trainer."""

from .collecting import CollectingLabeler, ImmediateLabeler, LabellingStopped
from .overlap import CopiedShare, ReferenceOverlap
from .panels import OTHER_TASTE, PAPER_TASTES, MajorityLabeler, Panel, Tastes, paper_labelers
from .protocol import Labeler, ScoreFunction
from .score import ScoreLabeler
from .sentiment import SentimentScorer
from .tastes import LengthScorer, MixedScore, RandomTaste, score_spread
from .vividness import VividnessScorer

__all__ = [
    "OTHER_TASTE",
    "PAPER_TASTES",
    "CollectingLabeler",
    "CopiedShare",
    "ImmediateLabeler",
    "Labeler",
    "LabellingStopped",
    "LengthScorer",
    "MajorityLabeler",
    "MixedScore",
    "Panel",
    "RandomTaste",
    "ReferenceOverlap",
    "ScoreFunction",
    "ScoreLabeler",
    "SentimentScorer",
    "Tastes",
    "VividnessScorer",
    "paper_labelers",
    "score_spread",
]
