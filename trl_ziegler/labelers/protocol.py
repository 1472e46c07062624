"""What a labeller is: something that picks the best of K completions. It knows no trainer and no policy."""

from typing import Protocol

Text = str | list[dict[str, str]]
"""A plain string, or chat messages (`[{"role": ..., "content": ...}, ...]`)."""


class ScoreFunction(Protocol):
    """A score of one completion, in the calling convention of TRL's reward functions: flat lists, one float a row.

    The same object serves as a labeller's hidden preference (`ScoreLabeler`) and as a reward function of PPO.
    """

    def __call__(self, prompts: list[Text], completions: list[Text], **columns: list) -> list[float]:
        """Score `completions[i]` as a continuation of `prompts[i]`; extra dataset columns arrive row by row."""
        ...


class Labeler(Protocol):
    """Picks the best completion of each prompt (Ziegler et al. 2019, section 2.2: a human picks one of K = 4)."""

    def label(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[int]:
        """Return, for each prompt, the index of its best completion, in 0..K-1; K may differ between prompts.

        Extra dataset columns arrive as lists with one value per prompt; a labeller ignores those it does not know.
        """
        ...


def plain_text(text: Text) -> str:
    """`text` itself, or the contents of its chat messages joined by newlines."""
    if isinstance(text, str):
        return text
    return "\n".join(message["content"] for message in text)
