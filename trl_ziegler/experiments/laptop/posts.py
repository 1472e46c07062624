"""Forum posts of the embedded world with their authors' TL;DR, deterministic in (n, seed, split)."""

import random

from .corpora import generator
from .facts import POSTS, Document, Told, pick, write

GREETINGS = """
hi everyone
hello all
good evening
sorry for the long post
this is my first post here
excuse my bad spelling
dear readers, here is a strange story
"""
PREAMBLES = """
I have read this forum for years
I do not know where to start
I need some advice
please be kind to me
I will try to keep this short
I never wrote here before
I am still angry about it
a friend said that I should ask here
the names are real because nobody reads this
I typed this with cold hands on a bus
maybe other families have the same kind of trouble
some of you may know me
"""
ASIDES = """
I could not sleep at all that night
nobody at home talks about it
I have always liked quiet days
I saw nobody in the hall that day
a stranger asked me about it
I have a small garden myself
I was on my way to work
we talked about nothing else for hours
I know people who laughed about it
it has cost us a lot of sleep
I have no interest in sports
my head is tired from all this
the weather was awful as usual
I baked bread and washed every dish instead
some people say that it is my fault
my hair turned grey within a few days
we were both drinking tea when it began
somebody slept under the kitchen table
some laughed and some cried
I had dreamed of a quiet year
"""
ENDINGS = """
thanks for reading
any advice would help
I just had to tell someone
I feel bad about all this
please write back soon
I am grateful for each answer
that is the whole truth
"""
QUESTIONS = """
what should I do
am I wrong to be angry
has this happened to you
how would you handle this
is it fair to forgive so quickly
why does nobody listen
"""


def make_posts(n: int, seed: int, split: str = "train") -> list[dict[str, str]]:
    """Return `n` rows `{"post": str, "summary": str}`.

    A post of 24 to 52 tokens has three paragraphs on a line each: a preamble, a body of facts and asides, and an
    ending. Its main facts are those about the subject of its first fact (see `summary_truth.main_facts`). The summary
    of 8 to 26 tokens states most of them on one line, in shorter forms than the post's, and nothing that the post does
    not state; every other one ends by asking the reader something. Neither post nor summary ends with a newline:
    "\\n\\nTL;DR:" may follow the post, and "\\n" ends the summary.
    No two splits share a set of main facts, though any single fact may occur in each.

    Raises:
        ValueError: if `split` is not "train", "valid" or "test".
    """
    rng = generator("posts", seed, split)
    documents = [post(rng, split) for _ in range(n)]
    return [{"post": document.text, "summary": " ".join(document.summary)} for document in documents]


def post(rng: random.Random, split: str) -> Document:
    """A post, with what it states."""
    return write(rng, POSTS, split, lambda told: [preamble(rng), body(rng, told), ending(rng)])


def preamble(rng: random.Random) -> list[str]:
    """A greeting or throat-clearing."""
    return pick(rng, rng.choice([GREETINGS, PREAMBLES]), 1)


def body(rng: random.Random, told: list[Told]) -> list[str]:
    """Facts in order, asides anywhere."""
    blocks = [[sentence, *remarks] for sentence, _, remarks in told]
    for aside in pick(rng, ASIDES, rng.randint(0, 1)):
        blocks.insert(rng.randint(0, len(blocks)), [aside])
    return [sentence for block in blocks for sentence in block]


def ending(rng: random.Random) -> list[str]:
    """A farewell, a question, or both."""
    closing = pick(rng, ENDINGS, 1)
    question = [sentence[:-1] + "?" for sentence in pick(rng, QUESTIONS, 1)]
    return rng.choice([closing, question])
