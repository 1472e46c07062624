"""Simulated labellers and the scores they label by. Nothing here knows a trainer."""

from .collecting import CollectingLabeler, ImmediateLabeler, LabellingStopped
from .overlap import CopiedShare, ReferenceOverlap
from .protocol import Labeler, ScoreFunction
from .score import ScoreLabeler
from .sentiment import SentimentScorer
from .vividness import VividnessScorer

__all__ = [
    "CollectingLabeler",
    "CopiedShare",
    "ImmediateLabeler",
    "Labeler",
    "LabellingStopped",
    "ReferenceOverlap",
    "ScoreFunction",
    "ScoreLabeler",
    "SentimentScorer",
    "VividnessScorer",
]
