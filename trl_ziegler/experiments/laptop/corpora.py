"""Corpora of the embedded world: story passages and labelled reviews, deterministic in (n, seed, split)."""

import random
import zlib
from collections.abc import Callable
from functools import partial

from . import words as w
from .grammar import REVIEW, STORY, VERDICTS, Scene, finish, sentence

SPLITS = ("train", "valid", "test")
SIGNS = (-1, 0, +1)
MOODS = {  # chances of a negative, neutral, positive sentence
    "negative": (0.55, 0.30, 0.15),
    "neutral": (0.15, 0.70, 0.15),
    "positive": (0.15, 0.30, 0.55),
    "mixed": (0.40, 0.20, 0.40),
}
TURN = 0.15  # chance that the mood changes before a sentence
STARS = {1: 0.01, 2: 0.08, 3: 0.5, 4: 0.92, 5: 0.99}  # chance that a charged sentence of the review is positive
STAR_WEIGHTS = (6, 6, 1, 6, 6)
LABEL_NOISE = 0.04


def passages(n: int, seed: int, split: str = "train") -> list[str]:
    """Return `n` passages of 3 to 6 sentences, one story scene each.

    A passage has a mood (negative, neutral, positive or mixed) that may turn on the way, and a vividness in [0, 1]. No
    two splits share a passage, nor the pair of sentences a passage opens with, whatever their seeds.

    Raises:
        ValueError: if `split` is not "train", "valid" or "test".
    """
    rng = generator("passages", seed, split)
    return [_draw(partial(_passage, rng), split) for _ in range(n)]


def reviews(n: int, seed: int, split: str = "train") -> list[dict[str, str | int]]:
    """Return `n` reviews `{"text": str, "label": int}`, label 1 for a satisfied customer, half of them on average.

    A review of 2 to 4 sentences mixes praise, blame and plain report according to a hidden number of stars; its label
    says whether the stars exceed 3 (a coin decides for 3 stars) and is wrong in 4 % of cases. Words in `HELD_OUT`
    occur in the test split only. No two splits share the pair of sentences a review opens with.

    Raises:
        ValueError: if `split` is not "train", "valid" or "test".
    """
    rng = generator("reviews", seed, split)
    banned = frozenset() if split == "test" else w.HELD_OUT
    rows: list[dict[str, str | int]] = []
    for stars in rng.choices(list(STARS), STAR_WEIGHTS, k=n):
        text = _draw(partial(_review, rng, stars, banned), split)
        rows.append({"text": text, "label": _label(rng, stars)})
    return rows


def generator(corpus: str, seed: int, split: str) -> random.Random:
    """The random source of one split of a corpus; `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use 'train', 'valid' or 'test'.")
    return random.Random(f"{corpus}-{split}-{seed}")


def _draw(make: Callable[[], list[str]], split: str) -> str:
    """Call `make` until its sentences fall into `split`, by their opening pair: 80 % train, 10 % valid, 10 % test."""
    while True:
        sentences = make()
        part = zlib.crc32(" ".join(sentences[:2]).encode()) % 10
        if split == {0: "valid", 1: "test"}.get(part, "train"):
            return " ".join(sentences)


def _passage(rng: random.Random) -> list[str]:
    scene = Scene(rng, vividness=rng.random())
    mood = rng.choice(list(MOODS))
    sentences = []
    for _ in range(rng.randint(3, 6)):
        if scene.chance(TURN):
            mood = rng.choice(list(MOODS))
        sentences.append(sentence(scene, STORY, rng.choices(SIGNS, MOODS[mood])[0]))
    return sentences


def _review(rng: random.Random, stars: int, banned: frozenset[str]) -> list[str]:
    scene = Scene(rng, vividness=rng.random(), banned=banned)
    sentences = [sentence(scene, REVIEW, _sign(rng, stars) * scene.chance(0.75)) for _ in range(rng.randint(1, 3))]
    if len(sentences) == 1 or scene.chance(0.3):
        sentences.append(finish(scene.pick(VERDICTS[_sign(rng, stars)])))
    return sentences


def _sign(rng: random.Random, stars: int) -> int:
    return 1 if rng.random() < STARS[stars] else -1


def _label(rng: random.Random, stars: int) -> int:
    satisfied = rng.random() < 0.5 if stars == 3 else stars > 3
    return int(satisfied != (rng.random() < LABEL_NOISE))
