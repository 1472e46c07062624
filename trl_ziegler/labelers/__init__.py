"""Simulated labellers and the scores they label by. Nothing here knows a trainer."""

from .protocol import Labeler, ScoreFunction
from .score import ScoreLabeler
from .sentiment import SentimentScorer
from .vividness import VividnessScorer

__all__ = ["Labeler", "ScoreFunction", "ScoreLabeler", "SentimentScorer", "VividnessScorer"]
