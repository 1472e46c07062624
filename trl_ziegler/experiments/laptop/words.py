"""The words of the embedded world and what they mean: polarity, vividness, who and what there is.

Written for this package. The grammar draws from these lists and the truth reads them, so the two cannot drift apart.
"""

NAMES = {"she": "Anna Clara Ella Mary Nora Ruth".split(), "he": "Ben Jack Paul Peter Sam Tom".split()}
RELATIVES = "mother father sister brother friend neighbor son daughter uncle cousin".split()
STRANGERS = "teacher baker doctor farmer sailor cook driver waiter guard nurse tailor clerk gardener singer".split()
PLACES = (
    "kitchen garden harbor market library station school forest village street beach cellar hotel cafe bridge river "
    "museum office bakery workshop"
).split()
VENUES = "hotel cafe market library bakery museum restaurant shop inn".split()  # what a review is about
THINGS = (
    "cup book basket lamp box chair blanket key bag map clock hat boat mirror letter coat knife ticket picture drum "
    "candle bucket ladder rope vase carpet bottle"
).split()
PARTS = "door window table bed wall gate stairs shelf fence oven bench roof".split()
FOODS = "bread cake tea coffee milk soup apple lemonade wine chocolate fish rice cheese stew".split()
WEATHER = "rain snow wind fog smoke sunlight cloud dust".split()
DAYS = "day evening morning week trip dinner party holiday visit walk".split()
TIMES = [
    "in the morning", "that evening", "after lunch", "at night", "on Sunday", "at noon", "before dinner",
    "the next day", "for an hour", "at dawn", "last week", "in winter",
]  # fmt: skip
DEEDS = (
    "opened closed carried moved found washed painted took left brought fixed sold bought showed kept watched hid "
    "drew lifted measured"
).split()
TALK = "asked spoke read wrote knew".split()

# Sentiment, +1 or -1, by the place a word takes in a sentence.
FEELINGS = {
    +1: "happy glad proud cheerful calm hopeful grateful safe thrilled delighted content eager".split(),
    -1: "sad angry lonely afraid worried upset ashamed tired hopeless miserable jealous bitter".split(),
}
TRAITS = {
    +1: "kind gentle friendly polite honest brave loyal wise generous patient".split(),
    -1: "rude cruel selfish careless lazy unfair mean false greedy dishonest".split(),
}
QUALITIES = {
    +1: "lovely wonderful beautiful perfect pleasant good great excellent nice fresh charming splendid".split(),
    -1: "awful terrible ugly dirty broken bad horrible boring nasty rotten dreadful useless".split(),
}
TOWARDS = {  # done to people
    +1: "loved trusted helped thanked hugged praised admired welcomed".split(),
    -1: "hated feared blamed cheated hurt mocked insulted threatened".split(),
}
FOND = {  # done to things
    +1: "loved enjoyed liked praised admired cherished".split(),
    -1: "hated disliked spoiled damaged ruined wasted".split(),
}
OUTBURSTS = {  # intransitive verbs
    +1: "laughed smiled sang danced cheered rejoiced".split(),
    -1: "cried shouted complained suffered groaned wept".split(),
}
NOUNS = {
    +1: "joy luck hope peace love fun comfort kindness".split(),
    -1: "pain trouble fear anger danger noise grief shame".split(),
}
VERDICTS = {+1: "recommend worth".split(), -1: "waste regret".split()}  # said in reviews only

# Adjectives whose polarity hangs on the noun; with any other noun they mean nothing.
AMBIGUOUS = {
    "cold": {"lemonade": +1, "milk": +1, "soup": -1, "coffee": -1, "room": -1},
    "warm": {"bread": +1, "blanket": +1, "room": +1, "milk": -1, "lemonade": -1, "wine": -1},
    "dark": {"chocolate": +1, "coffee": +1, "cellar": -1, "street": -1, "room": -1},
    "quiet": {"garden": +1, "library": +1, "hotel": +1, "party": -1, "cafe": -1},
    "long": {"holiday": +1, "letter": +1, "queue": -1, "storm": -1},
    "cheap": {"ticket": +1, "hotel": +1, "wine": -1, "coat": -1},
    "sharp": {"knife": +1, "picture": +1, "voice": -1, "wind": -1},
    "slow": {"morning": +1, "song": +1, "waiter": -1, "queue": -1},
    "sweet": {"cake": +1, "apple": +1, "soup": -1, "coffee": -1},
    "wild": {"party": +1, "forest": +1, "dog": -1, "storm": -1},
    "strong": {"tea": +1, "boat": +1, "wind": -1, "smoke": -1},
}

NEGATORS = frozenset("not never no hardly without".split())
INTENSIFIERS = "very so truly deeply".split()
DIMINISHERS = ["slightly", "somewhat", "a little"]

# Vividness: seen, touched or heard, and good or bad to nobody.
COLOURS = "red blue green golden silver pale grey white black yellow crimson amber".split()
TEXTURES = (
    "wooden velvet rough smooth dusty damp crisp mossy faded copper narrow round thin humming glittering".split()
)
MANNERS = "slowly softly quietly brightly steadily faintly".split()

# Sentiment words of the passages that no review of the train or valid split uses: a classifier meets them unprepared.
HELD_OUT = frozenset(
    "delighted miserable jealous generous dishonest splendid useless admired welcomed threatened ruined rejoiced wept "
    "kindness grief shame wild strong".split()
)


def polarities() -> dict[str, int]:
    """Return every word of fixed polarity with its sign, +1 or -1."""
    groups = (FEELINGS, TRAITS, QUALITIES, TOWARDS, FOND, OUTBURSTS, NOUNS, VERDICTS)
    return {word: sign for group in groups for sign, words in group.items() for word in words}


def ambiguous_pairs(sign: int, banned: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """Return the (adjective, noun) pairs of polarity `sign`, without the adjectives in `banned`."""
    return [
        (adjective, noun)
        for adjective, nouns in AMBIGUOUS.items()
        for noun, polarity in nouns.items()
        if polarity == sign and adjective not in banned
    ]
