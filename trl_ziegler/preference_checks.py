"""What a record of preferences, or a prompt, must not be: each refused in one sentence with its row, field and value.

`where` begins such a sentence, for example "Row 3 of `train`".
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from accelerate.logging import get_logger

logger = get_logger(__name__)

MAX_IDENTICAL_SHARE = 0.1

LEAST_RECORDS = 64
"""Labels of at least three candidates each, among which none is 0 by chance in one of 10^11 data sets."""


# ---- Texts and chats ------------------------------------------------------------------------------------------------


def require_k(completions: Any, field: str, where: str) -> None:
    """Refuse fewer than two completions."""
    if not isinstance(completions, list) or len(completions) < 2:
        count = len(completions) if isinstance(completions, list) else repr(completions)
        raise ValueError(f"{where}: `{field}` holds {count}; a choice needs a list of at least 2, so drop the record.")


def require_text(value: Any, field: str, where: str) -> None:
    """Refuse what is neither a text nor chat messages, and what is empty."""
    chat = isinstance(value, list) and value and all(isinstance(message, dict) for message in value)
    if chat:
        require_messages(value, f"{where}: {field}")
    texts = ["call" if message.get("tool_calls") else message.get("content") for message in value] if chat else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where}: {field} is {value!r}; give non-empty text or chat messages, or drop the record.")


def require_messages(messages: list[Any], what: str) -> None:
    """Refuse a list that is no chat: ids, or messages with other keys (ShareGPT's) or without content."""
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(
                f"{what} is a list that begins with {messages[0]!r}, which is no chat message; token ids belong into "
                "`input_ids` (prompts of PPO) or `prompt_ids` and `completion_ids` (labels)."
            )
        if not {"role", "content"} <= set(message) and not message.get("tool_calls"):
            raise ValueError(
                f"{what} has the keys {sorted(message)} in message {number}; a chat message has `role` and `content`, "
                "so rename them."
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise ValueError(f"{what} has no `content` in message {number} ({message!r}); give text, or drop the row.")


def require_open_end(messages: list[dict[str, Any]]) -> None:
    """Refuse a chat that the assistant had the last word of: an answer would be a second turn of its own."""
    if messages and messages[-1].get("role") == "assistant":
        raise ValueError(
            f"`prompt` ends with a turn of the assistant ({str(messages[-1]['content'])[:40]!r}), which a response "
            "would follow as a second one; end it with the user's, and put an answer into the completions."
        )


def repeats_prompt(prompt: Any, completions: Sequence[Any]) -> bool:
    """Whether every completion, text, chat or ids, begins with the prompt, as what `generate` returns does."""
    return bool(prompt) and all(completion[: len(prompt)] == prompt for completion in completions)


def check_repeated_prompts(repeated: int, total: int, name: str) -> None:
    """Refuse data whose completions all begin with their prompt, which would be read twice; warn where some do."""
    if not repeated:
        return
    advice = "cut it off, so that completions hold the answers alone"
    if repeated == total:
        raise ValueError(
            f"All completions of the {total} records of `{name}` begin with their prompt, which would be read twice; "
            f"{advice}, or leave the column of prompts out."
        )
    logger.warning(
        f"`{name}`: in {repeated} of {total} records all completions begin with the prompt; if they repeat it, "
        f"{advice}."
    )


# ---- Judgements -----------------------------------------------------------------------------------------------------


def require_label(label: Any, k: int, where: str) -> None:
    """Refuse what is not the index of one of K completions; a whole float, as a table with gaps makes it, is one."""
    if isinstance(label, bool):
        raise ValueError(f"{where}: `label` is {label}, a truth value; give the index of the best completion instead.")
    if isinstance(label, str):
        raise ValueError(f"{where}: `label` is {label!r}, a text; give the index of the best completion as a number.")
    if not isinstance(label, int | float) or label not in range(k):
        raise ValueError(f"{where}: `label` is {label!r}, but with {k} completions it is in 0..{k - 1}; correct it.")


def require_ranking(ranking: Any, k: int, where: str) -> None:
    """Refuse what is no permutation of K indices."""
    if not isinstance(ranking, list) or Counter(ranking) != Counter(range(k)):
        raise ValueError(
            f"{where}: `ranking` is {ranking!r}, but with {k} completions it lists 0..{k - 1} once each, best first; "
            "for ties give `scores`."
        )


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def require_scores(scores: Any, k: int, where: str) -> None:
    """Refuse what is not K finite numbers."""
    if not are_scores(scores, k):
        raise ValueError(f"{where}: `scores` is {scores!r}, but {k} completions need {k} finite numbers; correct it.")


def are_scores(scores: Any, k: int) -> bool:
    """Whether it is K finite numbers."""
    return isinstance(scores, list) and len(scores) == k and all(map(is_number, scores))


CHECKS = {"label": require_label, "ranking": require_ranking, "scores": require_scores}


def require_margin(record: dict[str, Any], where: str) -> None:
    """Refuse a margin that is no number."""
    if "margin" in record and not is_number(record["margin"]):
        raise ValueError(f"{where}: `margin` is {record['margin']!r}; give a finite number, or remove the column.")


def require_agreement(record: dict[str, Any], label: int, k: int, where: str) -> None:
    """Refuse a label that the record's own scores, ranking or chosen completion contradict.

    What is not well formed, or speaks of other completions, is a column of somebody else's and no judgement.
    """
    scores: Any = record.get("scores")
    ranking, chosen, completions = record.get("ranking"), record.get("chosen"), record.get("completions")
    others = {}
    if are_scores(scores, k) and scores[label] < max(scores):
        others["scores"] = scores.index(max(scores))
    if isinstance(ranking, list) and Counter(ranking) == Counter(range(k)) and ranking[0] != label:
        others["ranking"] = ranking[0]
    if (
        isinstance(completions, list)
        and len(completions) == k
        and chosen in completions
        and completions[label] != chosen
    ):
        others["chosen"] = completions.index(chosen)
    for field, best in others.items():
        raise ValueError(
            f"{where}: `label` is {label}, but by `{field}` completion {best} is the best; correct it, or remove the "
            "column that is not meant."
        )


def check_dropped(
    dropped: Counter, identical: int, total: int, max_length: int | None, least_left: int, name: str
) -> None:
    """Warn about what is dropped; refuse if nothing would be left or too much is identical.

    Args:
        dropped: Records by the reason they are dropped for.
        identical: Records with identical completions, dropped or merged.
        total: Records given.
        max_length: The limit of those that are "too long".
        least_left: Records below which it is an error that more than half are too long.
        name: What messages call the dataset.
    """
    if identical > MAX_IDENTICAL_SHARE * total:
        raise ValueError(
            f"{identical} of {total} records of `{name}` hold identical completions (at most 10 % may); sample them "
            "at a higher temperature or remove the copies."
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    if dropped.total() == total:
        raise ValueError(
            f"No record of `{name}` is left: {total} records, {counts} (`max_length` is "
            f"{max_length}); raise `max_length` or correct the data."
        )
    if identical:
        logger.warning(f"`{name}`: dropped identical completions from {identical} of {total} records.")
    if dropped:
        logger.warning(f"`{name}`: dropped {dropped.total()} of {total} records ({counts}; max_length {max_length}).")
    if dropped["too long"] <= total / 2:
        return
    left = total - dropped.total()
    if left < least_left:
        raise ValueError(
            f"Only {left} of {total} records of `{name}` are left, fewer than one batch of {least_left}: "
            f"{dropped['too long']} are longer than `max_length` ({max_length}); raise it to what the model reads, "
            "or cut the prompts."
        )
    logger.warning(
        f"`{name}`: {dropped['too long'] / total:.0%} of the records are longer than `max_length` ({max_length}), "
        "and the rest may be unlike them; raise it to what the model reads, or cut the prompts."
    )


def warn_of_labels_from_one(labels: Sequence[int], completions: Sequence[Sequence[Any]], name: str) -> None:
    """Warn of many labels that are never 0, as they are where somebody counted from 1."""
    if len(labels) >= LEAST_RECORDS and 0 not in labels and min(map(len, completions)) > 2:
        logger.warning(
            f"`{name}`: none of {len(labels)} labels is 0; completions count from 0, so subtract 1 if yours count "
            "from 1."
        )


# ---- Ids ------------------------------------------------------------------------------------------------------------


def require_known_ids(sequences: Sequence[Sequence[int]], vocab_size: float, where: str) -> None:
    """Refuse an id that the model does not embed."""
    for ids in sequences:
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            unknown = next(i for i in ids if not 0 <= i < vocab_size)
            raise ValueError(
                f"{where} has the id {unknown}, which is outside the model's {vocab_size}; use the model's own "
                "tokenizer, or resize the model's embeddings."
            )
