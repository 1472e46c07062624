"""Sentences of the embedded world: templates with slots, filled for a scene and a polarity.

A template is plain English with `{slot}`s; each slot is one of the small functions in `SLOTS`. Clauses carry a
polarity `sign` in {-1, 0, +1}; a sentence joins one or two of them. Lengths are 5 tokens, the shortest template, to
14, period included.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from . import words as w

LONGEST = 14  # tokens of a sentence: words, commas and the period

NEUTRAL = """
{who} walked to the {v}{place} {time}
{who} walked{ly} through the {v}{place}
{who} sat by the {v}{part} and {did} the {v}{thing}
{who} {did} the {v}{thing}{ly}
{who} {did} a {v}{thing} and put it on the {v}{part}
{other} stood{ly} in the {v}{place} {time}
the {v}{thing} was on the {v}{part}
there was a {v}{thing} by the {v}{part}
{time}, {who} went to the {place} with {other}
the {v}{weather} moved{ly} over the {v}{place}
{who} looked at the {v}{thing} in the {v}{light}
{other} {talked} about the {v}{thing}
{other} asked about the {thing}, and {he} answered{ly}
{who} made {food} for {other}
{who} waited for {other} at the {v}{part}
it rained{ly} in the {v}{place} {time}
in the {v}{place}, {other} {did} a {v}{thing}
a {v}{thing} and a {v}{thing} were in the {place}
{who} turned and saw the {v}{weather} over the {place}
{other} gave {him} a {v}{thing} {time}
{who} and {other} {did} the {v}{thing} {time}
"""
CHARGED = """
{who} was {feeling} {time}
{who} felt {feeling} in the {v}{place}
{who} was {feeling} about the {v}{thing}
{who} {fond} the {v}{thing}
{other} {towards} {him} {time}
{other} was {trait} to {him}
the {v}{thing} was {quality}
the {food} was {quality}, and {he} {outburst}
it was a {fine} {day} in the {v}{place}
{other} {outburst} when {name} came home
there was {presence} in the {v}{place}
{who} thought the {v}{place} was {quality}
{who} found a {fine} {v}{thing} by the {part}
{who} {outburst}{ly} by the {v}{part}
{who} talked to {other} and {outburst}
{who} remembered the {mixed} {time}
the {is_mixed} {time}
{other} spoke about the {mixed}
"""
CLAUSES = """
{who} was {feeling}
the {thing} was {quality}
{other} was {trait}
the {is_mixed}
{other} {outburst}
{who} {fond} the {thing}
"""
REVIEW_NEUTRAL = """
we ordered the {food} and the {food}
I stayed at the {venue} for two nights
my {relative} came with us {time}
the {venue} is near the {place}
I bought the {v}{thing} {time}
we sat by the {v}{part} and had {food}
the {v}{thing} came in a box
{who} walked to the {venue} with us
"""
REVIEW_CHARGED = """
the {food} was {quality}
the {thing} was {quality}
the {stranger} was {trait}
I {fond} the {thing}
we {fond} the {food}
my {relative} {fond} the {venue}
we were {feeling} {time}
I was {feeling} about the {thing}
the {is_mixed}
we remembered the {mixed} {time}
it was a {fine} {day}
I bought a {fine} {thing}
the {venue} was {quality}
there was {presence} at the {venue}
my {relative} {outburst} {time}
{who} {outburst} in the {v}{venue}
{who} was {feeling} {time}
{who} {fond} the {v}{thing}
{other} {towards} {him} {time}
the {stranger} {towards} us {time}
my {relative} {towards} the {stranger}
{other} was {trait} to {him}
"""
REVIEW_CLAUSES = """
the {food} was {quality}
the {stranger} was {trait}
the {is_mixed}
I {fond} the {venue}
we were {feeling}
"""
VERDICTS = {
    +1: [
        "I would recommend it to a friend",
        "it was worth the money",
        "we do not regret it",
        "it was no waste of money",
    ],
    -1: [
        "I would not recommend it to a friend",
        "it was not worth the money",
        "we regret it",
        "it was a waste of money",
    ],
}


@dataclass
class Scene:
    """What the sentences of one text share: its people, its place, its vividness in [0, 1] and the words it avoids."""

    rng: random.Random
    vividness: float = 0.0
    banned: frozenset[str] = frozenset()
    pronoun: str = field(init=False)
    hero: str = field(init=False)
    companion: str = field(init=False)
    place: str = field(init=False)
    mentioned: bool = field(init=False, default=False)

    def __post_init__(self):
        self.pronoun = self.rng.choice(list(w.NAMES))
        self.hero = self.rng.choice(w.NAMES[self.pronoun])
        self.companion = self.pick(
            [f"{self.his} {relative}" for relative in w.RELATIVES] + w.NAMES["she"] + w.NAMES["he"]
        )
        self.place = self.pick(w.PLACES)

    def pick(self, options: Sequence[str]) -> str:
        """Return one of the options that is neither avoided nor the hero's name."""
        return self.rng.choice([word for word in options if word not in self.banned and word != self.hero])

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return self.rng.random() < probability

    @property
    def his(self) -> str:
        """The hero's possessive pronoun."""
        return {"she": "her", "he": "his"}[self.pronoun]

    def who(self) -> str:
        """The hero by name at first, mostly by pronoun afterwards."""
        if self.mentioned and self.chance(0.6):
            return self.pronoun
        self.mentioned = True
        return self.hero

    def other(self) -> str:
        """The companion, or now and then someone passing by."""
        return self.companion if self.chance(0.7) else f"the {self.pick(w.STRANGERS)}"


def degree(scene: Scene, group: dict[int, list[str]], sign: int) -> str:
    """A predicate of polarity `sign`: plain, intensified, weakened, or the opposite negated."""
    roll = scene.rng.random()
    if roll < 0.1:
        return f"not {scene.pick(['', 'very '])}{scene.pick(group[-sign])}"
    adverb = scene.pick(w.INTENSIFIERS) if roll < 0.3 else scene.pick(w.DIMINISHERS) if roll < 0.4 else ""
    return f"{adverb} {scene.pick(group[sign])}".strip()


def verb(scene: Scene, group: dict[int, list[str]], sign: int) -> str:
    """A verb of polarity `sign`, or the opposite one under "never"."""
    return f"never {scene.pick(group[-sign])}" if scene.chance(0.07) else scene.pick(group[sign])


def fine(scene: Scene, sign: int) -> str:
    """An adjective of polarity `sign` before its noun, at times intensified."""
    return f"{'very ' if scene.chance(0.2) else ''}{scene.pick(w.QUALITIES[sign])}"


def presence(scene: Scene, sign: int) -> str:
    """A noun of polarity `sign` that is there, or its opposite that is not."""
    return f"no {scene.pick(w.NOUNS[-sign])}" if scene.chance(0.15) else f"much {scene.pick(w.NOUNS[sign])}"


def mixed(scene: Scene, sign: int) -> str:
    """An ambiguous adjective before the noun that decides its polarity."""
    return " ".join(scene.rng.choice(w.ambiguous_pairs(sign, scene.banned)))


def is_mixed(scene: Scene, sign: int) -> str:
    """The same as a predicate: the noun comes first."""
    adjective, noun = scene.rng.choice(w.ambiguous_pairs(sign, scene.banned))
    return f"{noun} was {'very ' if scene.chance(0.2) else ''}{adjective}"


def vivid(scene: Scene) -> str:
    """Nothing, or one or two adjectives for the noun that follows, as often as the scene is vivid."""
    colour, texture = scene.chance(0.7 * scene.vividness), scene.chance(0.5 * scene.vividness)
    return (f"{scene.pick(w.TEXTURES)} " if texture else "") + (f"{scene.pick(w.COLOURS)} " if colour else "")


Slot = Callable[[Scene, int], str]
SLOTS: dict[str, Slot] = {
    "who": lambda scene, sign: scene.who(),
    "name": lambda scene, sign: scene.hero,
    "he": lambda scene, sign: scene.pronoun,
    "him": lambda scene, sign: {"she": "her", "he": "him"}[scene.pronoun],
    "other": lambda scene, sign: scene.other(),
    "relative": lambda scene, sign: scene.pick(w.RELATIVES),
    "stranger": lambda scene, sign: scene.pick(w.STRANGERS),
    "place": lambda scene, sign: scene.place if scene.chance(0.6) else scene.pick(w.PLACES),
    "venue": lambda scene, sign: scene.pick(w.VENUES),
    "thing": lambda scene, sign: scene.pick(w.THINGS),
    "part": lambda scene, sign: scene.pick(w.PARTS),
    "food": lambda scene, sign: scene.pick(w.FOODS),
    "weather": lambda scene, sign: scene.pick(w.WEATHER),
    "light": lambda scene, sign: scene.pick(["light", "shadow", "rain", "snow"]),
    "day": lambda scene, sign: scene.pick(w.DAYS),
    "time": lambda scene, sign: scene.pick(w.TIMES),
    "did": lambda scene, sign: scene.pick(w.DEEDS),
    "talked": lambda scene, sign: scene.pick(w.TALK),
    "v": lambda scene, sign: vivid(scene),
    "ly": lambda scene, sign: f" {scene.pick(w.MANNERS)}" if scene.chance(0.6 * scene.vividness) else "",
    "feeling": lambda scene, sign: degree(scene, w.FEELINGS, sign),
    "trait": lambda scene, sign: degree(scene, w.TRAITS, sign),
    "quality": lambda scene, sign: degree(scene, w.QUALITIES, sign),
    "fine": fine,
    "towards": lambda scene, sign: verb(scene, w.TOWARDS, sign),
    "fond": lambda scene, sign: verb(scene, w.FOND, sign),
    "outburst": lambda scene, sign: verb(scene, w.OUTBURSTS, sign),
    "presence": presence,
    "mixed": mixed,
    "is_mixed": is_mixed,
}


class Style(NamedTuple):
    """The templates of one kind of text."""

    neutral: list[str]
    charged: list[str]
    clauses: list[str]


def lines(block: str) -> list[str]:
    """The templates of a block, one per line."""
    return block.strip().split("\n")


STORY = Style(lines(NEUTRAL), lines(CHARGED), lines(CLAUSES))
REVIEW = Style(lines(REVIEW_NEUTRAL) + lines(NEUTRAL), lines(REVIEW_CHARGED), lines(REVIEW_CLAUSES))


def fill(template: str, scene: Scene, sign: int) -> str:
    """Replace each `{slot}` of the template by words for this scene and polarity."""
    return re.sub(r"\{(\w+)\}", lambda match: SLOTS[match[1]](scene, sign), template)


def finish(text: str) -> str:
    """Make a sentence of a clause: capital, "an" where due, period."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return f"{text[0].upper()}{text[1:]}."


def draft(scene: Scene, style: Style, sign: int) -> str:
    """A sentence of polarity `sign` and any length; 12 % of the charged ones set a lesser opposite against it."""
    if sign == 0:
        return finish(fill(scene.rng.choice(style.neutral), scene, 0))
    if scene.chance(0.88):
        return finish(fill(scene.rng.choice(style.charged), scene, sign))
    lesser = fill(scene.rng.choice(style.clauses), scene, -sign)
    main = fill(scene.rng.choice(style.clauses), scene, sign)
    return finish(f"{lesser}, but {main}" if scene.chance(0.6) else f"although {lesser}, {main}")


def sentence(scene: Scene, style: Style, sign: int) -> str:
    """A sentence of polarity `sign` in {-1, 0, +1}, of 5 to 14 tokens."""
    while True:
        text = draft(scene, style, sign)
        if len(tokens(text)) <= LONGEST:
            return text


def tokens(text: str) -> list[str]:
    """Lower-case words, commas and periods, in order."""
    return re.findall(r"[a-z]+|[.,]", text.lower())
