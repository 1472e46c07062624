"""Comparisons to put into a label store, and a labeller who answers them."""

from trl_ziegler.labelers.human import LabelStore


def records(count: int, k: int = 4, **columns) -> list[dict]:
    """`count` different comparisons of `k` completions."""
    return [
        {"prompt": f"Prompt {i}", "completions": [f" answer {i}.{j}" for j in range(k)], **columns}
        for i in range(count)
    ]


def answer_all(store: LabelStore, labeller: str, label: int = 0, seconds: float = 2.0) -> list[str]:
    """Let a labeller answer whatever the store has for them; the ids in order."""
    done = []
    while (work := store.take(labeller)) is not None:
        store.answer(labeller, work.comparison.id, label=label, seconds=seconds)
        done.append(work.comparison.id)
    return done
