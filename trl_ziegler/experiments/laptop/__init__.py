"""The embedded world: generated corpora, their truth, and a tokenizer and model sizes to go with them. No download.

Everything is a function of a seed and Python's `random.Random`; texts and word lists were written for this package.
"""

from .corpora import passages, reviews
from .news import make_news
from .posts import make_posts
from .summary_truth import SummaryParts, SummaryScorer, facts_in, main_facts, summary_parts
from .tiny_model import build_tokenizer, classifier_config, lm_config
from .truth import true_sentiment, true_vividness

__all__ = [
    "SummaryParts",
    "SummaryScorer",
    "build_tokenizer",
    "classifier_config",
    "facts_in",
    "lm_config",
    "main_facts",
    "make_news",
    "make_posts",
    "passages",
    "reviews",
    "summary_parts",
    "true_sentiment",
    "true_vividness",
]
