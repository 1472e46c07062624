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


def check_rows(prompts: list[Text], completions: list[list[Text]], columns: dict[str, list]) -> None:
    """Refuse arguments of `Labeler.label` that differ in length, or a prompt with fewer than 2 completions."""
    for name, values in {"completions": completions, **columns}.items():
        if len(values) != len(prompts):
            raise ValueError(f"{name} has {len(values)} rows for {len(prompts)} prompts; give one row per prompt.")
    for i, candidates in enumerate(completions):
        if isinstance(candidates, str) or len(candidates) < 2:
            raise ValueError(
                f"completions[{i}]={candidates!r} leaves nothing to choose from; give a list of at least 2 texts."
            )
