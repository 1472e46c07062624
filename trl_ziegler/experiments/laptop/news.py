"""News articles of the embedded world with their highlights, deterministic in (n, seed, split)."""

import random

from .corpora import generator
from .facts import NEWS, Document, Told, pick, write

QUOTES = """
"we are proud of this step," a voter said
"it is too early to say more," a judge said
"this will change the town," a reader wrote
"we had hoped for more," a worker said
"nobody asked us about it," a neighbor said
"we shall see what comes of it," an expert said
"such a choice takes courage," a professor noted
"our children deserve a better future," a parent shouted
"I read it twice and still could not believe it," a student said
"""
DETAILS = """
hundreds of people came to watch
the news was read abroad as well
there had been talk about it for weeks
the last time was years ago
nobody wanted to comment
the cost is not known
most shops were shut at that time
crowds stood in the rain all day
many people were asked about it
a vote is expected in the fall
both sides met behind closed doors
a spokesman refused to give any reasons
critics called it a mistake
similar ideas had been rejected before
heavy traffic blocked several roads downtown
the budget has been tight since the flood
supporters waved flags and sang loudly
local radio first reported the story
"""
CLOSINGS = """
more details will follow
the matter is still open
the next meeting is soon
no date has been set
an inquiry is under way
the final decision rests with the voters
"""


def make_news(n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
    """Return `n` rows `{"article": str, "highlights": str}`.

    An article of 24 to 52 tokens opens with its first main fact, at times two in that sentence; facts, details and
    quotes follow, two or three sentences to a line. Its main facts are those about the subject of its first sentence
    (see `summary_truth.main_facts`). The highlights, 8 to 26 tokens, stand on a line each and state most of the main
    facts, in shorter forms than the article's, and nothing that the article does not state; every other one ends with
    a line that sends the reader on. Neither ends with a newline: "\\n\\nTL;DR:" may follow the article. No two splits
    share a set of main facts, though any single fact may occur in each.

    Raises:
        ValueError: if `split` is not "train", "valid" or "test".
    """
    rng = generator("news", seed, split)
    documents = [article(rng, split) for _ in range(n)]
    return [{"article": document.text, "highlights": "\n".join(document.summary)} for document in documents]


def article(rng: random.Random, split: str) -> Document:
    """An article, with what it states."""
    return write(rng, NEWS, split, lambda told: paragraphs(rng, sentences(rng, told)))


def sentences(rng: random.Random, told: list[Told]) -> list[str]:
    """The main fact first, then the other facts in order among quotes and details, and a closing."""
    blocks = [[sentence, *remarks] for sentence, _, remarks in told]
    for extra in pick(rng, rng.choice([QUOTES, DETAILS]), 1):
        blocks.insert(rng.randint(1, len(blocks)), [extra])
    return [sentence for block in blocks for sentence in block] + pick(rng, CLOSINGS, 1)


def paragraphs(rng: random.Random, order: list[str]) -> list[list[str]]:
    """The sentences in pairs or threes."""
    parts: list[list[str]] = []
    while order:
        size = rng.randint(2, 3)
        parts.append(order[:size])
        order = order[size:]
    return parts
