"""A scripted stand-in for the descriptiveness labeller: how densely a text is set with sensory words.

Ziegler et al. 2019 (section 3.1) had people judge how physically descriptive a text is; this lexical score needs none,
and is a proxy only: it knows single words, not what they describe.
"""

import re

from .protocol import Text, plain_text

COLOUR_AND_LIGHT = """
amber azure black blue bright bronze brown copper crimson dark dim dusky faded faint fiery flickering gleaming
glinting glistening glittering glossy glowing gold golden gray green grey hazy ivory luminous misty moonlit murky
orange pale pink purple radiant red rosy ruby rusty scarlet shadowy shimmering shining shiny silver silvery
sparkling speckled striped sunlit tinted translucent turquoise vermilion violet white yellow
"""
TEXTURE_AND_MATTER = """
ashen barbed bristly brittle bumpy cobbled coarse cracked creased crisp crooked crumbling crusted curled curly damp
dewy dry dusty feathery flaky fluffy frayed frosty frozen furry glass gnarled grainy gravelly greasy gritty hollow
icy jagged knotted lacy leafy leathery marble mossy mottled muddy oily papery peeling pebbled polished powdery
prickly ragged rough sandy silken silky slick slimy slippery smooth snowy soaked soft spiky splintered sticky stony
tangled tattered thick thorny velvet velvety waxen weathered wet wiry withered wooden woolen woollen wrinkled
"""
SOUND_TASTE_SMELL_HEAT = """
acrid bitter buttery buzzing chilly chirping clanging clattering cold cool crackling creaking creamy creaky
deafening dripping earthy echoing fragrant freezing fruity grinding gurgling hissing honeyed hot howling humming
hushed juicy lukewarm minty muffled murmuring musky nutty peppery perfumed piercing pungent rattling ringing
roaring rumbling rustling salty savory scented scorching shrill sizzling smoky sour spicy squeaky steaming stinging
sugary sweet tangy tart tepid thundering tinkling trickling warm whirring whispering whistling
"""
SHAPE_AND_SIZE = """
angular arched bent broad bulging bulky circular coiled conical curved deep domed enormous flat gaunt giant
gigantic huge immense lanky lean long lopsided massive narrow oval pointed rounded sharp short slender slim spiral
square squat steep stout straight tall tapering thin tiny towering twisted vast wavy wide winding
"""
MANNER = """
brightly dimly faintly gently harshly heavily hoarsely lazily lightly loudly noisily quietly sharply silently
slowly smoothly softly steadily swiftly thickly warmly
"""
VIVID_WORDS: frozenset[str] = frozenset(
    (COLOUR_AND_LIGHT + TEXTURE_AND_MATTER + SOUND_TASTE_SMELL_HEAT + SHAPE_AND_SIZE + MANNER).split()
)
SHORTEST = 10  # words; a shorter text is counted as this long, or one red word would be the most vivid text of all


class VividnessScorer:
    """Different listed words per 10 words of the completion, in [0, 10]; a word said twice counts once.

    The list holds colours, light, textures, materials, sounds, tastes, smells, temperatures, shapes and manners, for
    ordinary English and the embedded world alike. Case is ignored.

    Example:

    ```python
    >>> VividnessScorer()([""], ["The pale moon hung over the silver lake and the mossy wall."])
    [2.5]
    ```
    """

    __name__ = "vividness"  # TRL's trainers log a reward function under its name

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Return the vividness of each completion, in order; prompts and columns do not matter."""
        return [vividness(plain_text(completion)) for completion in completions]


def vividness(text: str) -> float:
    """10 · |listed words in `text`| / max(words, 10)."""
    words = re.findall(r"[a-z]+", text.lower())
    return 10.0 * len(VIVID_WORDS.intersection(words)) / max(len(words), SHORTEST)
