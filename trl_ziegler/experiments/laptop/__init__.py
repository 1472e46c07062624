"""The embedded world: generated corpora, their truth, and a tokenizer and model sizes to go with them. No download.

Everything is a function of a seed and Python's `random.Random`; texts and word lists were written for this package.
"""

from .corpora import passages, reviews
from .tiny_model import build_tokenizer, classifier_config, lm_config
from .truth import true_sentiment, true_vividness

__all__ = [
    "build_tokenizer",
    "classifier_config",
    "lm_config",
    "passages",
    "reviews",
    "true_sentiment",
    "true_vividness",
]
