"""What a text of the embedded world really says: its sentiment and vividness, read by the generator's own rules.

Both work on any English text, so they also judge what a model wrote; unknown words say nothing.
"""

from . import words as w
from .grammar import tokens

POLARITY = w.polarities()
VIVID = frozenset(w.COLOURS + w.TEXTURES + w.MANNERS)
DIMINISHING = frozenset(phrase.split()[-1] for phrase in w.DIMINISHERS)
NEGATION, INTENSIFIED, DIMINISHED, CONCEDED = -0.5, 1.5, 0.5, 0.5
REACH = 3  # words a negator or adverb looks ahead


def true_sentiment(text: str) -> float:
    """Return the sum of the sentences' polarities; unbounded, about -6..6 for a passage, 0 for a text without mood.

    A sentiment word counts +1 or -1; an ambiguous adjective counts by its noun ("cold soup" -1, "cold lemonade" +1).
    A negator up to 3 words ahead multiplies by -0.5 ("not bad" is less than "good"), an intensifier by 1.5, a
    diminisher by 0.5; none reaches past a comma or another sentiment word. What stands before "but", or between
    "although" and its comma, counts half.
    """
    return float(sum(sentence_polarity(sentence.split()) for sentence in " ".join(tokens(text)).split(".")))


def true_vividness(text: str) -> float:
    """Return the share, in [0, 1], of different vivid words of this world among all words of the text."""
    words = [token for token in tokens(text) if token.isalpha()]
    return len(VIVID.intersection(words)) / max(len(words), 1)


def sentence_polarity(words: list[str]) -> float:
    """Sum over one sentence, given as lower-case words and commas without the period."""
    total = 0.0
    conceded = concession(words)
    for i, word in enumerate(words):
        sign = POLARITY.get(word, 0) or noun_decides(words, i)
        total += sign * modifiers(words, i) * (CONCEDED if i in conceded else 1.0)
    return total


def concession(words: list[str]) -> range:
    """Positions of the clause that the rest of the sentence outweighs."""
    if "but" in words:
        return range(words.index("but"))
    if "although" in words and "," in words[words.index("although") :]:
        start = words.index("although")
        return range(start, words.index(",", start))
    return range(0)


def noun_decides(words: list[str], i: int) -> int:
    """Polarity of an ambiguous adjective: by a noun within the next 2 words, else by the nearest one before it."""
    nouns = w.AMBIGUOUS.get(words[i])
    if nouns is None:
        return 0
    candidates = words[i + 1 : i + 3] + words[:i][::-1]
    return next((nouns[word] for word in candidates if word in nouns), 0)


def modifiers(words: list[str], i: int) -> float:
    """Product of what the words up to 3 before position `i` do to it."""
    factor = 1.0
    for word in words[max(i - REACH, 0) : i][::-1]:
        if word == "," or word in POLARITY:
            break
        factor *= NEGATION if word in w.NEGATORS else 1.0
        factor *= INTENSIFIED if word in w.INTENSIFIERS else 1.0
        factor *= DIMINISHED if word in DIMINISHING else 1.0
    return factor
