"""From preference records to token ids: the one tokenisation of the package, the accepted formats, and their checks.

A record is a prompt, K >= 2 completions (K may differ between records) and one judgement:

| columns | judgement |
|---|---|
| `prompt`, `completions` | `label`: index of the best, or `ranking`: indices, best first, or `scores`: K numbers |
| `chosen`, `rejected`, with or without `prompt` | TRL's pairs: K = 2, label 0 |
| `prompt_ids`, `completion_ids` (K lists) | tokenised, with `label`, `ranking` or `scores` |
| `chosen_ids`, `rejected_ids` | TRL's tokenised pairs |

Prompt and completions are text or chat messages. Other columns survive.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset, Value
from transformers import PreTrainedTokenizerBase

from .preference_checks import (
    CHECKS,
    check_dropped,
    check_repeated_prompts,
    repeats_prompt,
    require_agreement,
    require_k,
    require_known_ids,
    require_margin,
    require_messages,
    require_open_end,
    require_text,
    warn_of_labels_from_one,
)

logger = get_logger(__name__)

JUDGEMENTS = {
    "best_of_k": ("label", "ranking", "scores"),
    "pairwise": ("label", "ranking", "scores"),
    "ranking": ("ranking", "scores"),
    "scalar": ("scores",),
}
"""Which columns can serve each loss; where several are there, the first one counts."""

# Working columns of `prepare_preferences`, removed before it returns.
_DROPPED, _IDENTICAL, _REPEATED = "_dropped", "_identical", "_repeated"


def tokenize_prompt(
    processing_class: PreTrainedTokenizerBase, prompt: str | list[dict], *, where: str = "", **template: Any
) -> list[int]:
    """Ids of a prompt: the tokenizer's leading special tokens (such as BOS) and the text, or the chat with its cue.

    Args:
        processing_class: The tokenizer.
        prompt: Text, or chat messages; these are rendered with the generation prompt.
        where: What errors begin with, for example "Row 3 of `train`".
        template: Goes to the chat template (`tools`, ...).

    Raises:
        ValueError: neither text nor messages, messages that end with the assistant's, or messages for a tokenizer
            without a chat template.
    """
    try:
        return _tokenize_prompt(processing_class, prompt, **template)
    except ValueError as error:
        if not where:
            raise
        raise ValueError(f"{where}: {error}") from None


def _tokenize_prompt(
    processing_class: PreTrainedTokenizerBase, prompt: str | list[dict], **template: Any
) -> list[int]:
    if isinstance(prompt, list):
        require_messages(prompt, "`prompt`")
        require_open_end(prompt)
        return _render(processing_class, prompt, add_generation_prompt=True, **template)
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` is {prompt!r}; give text or a list of chat messages, or drop the row.")
    return _leading_special_ids(processing_class) + _encode(processing_class, prompt)


def tokenize_prompt_completion(
    processing_class: PreTrainedTokenizerBase, prompt: str | list[dict], completion: str | list[dict], **template: Any
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its completion, such that their concatenation is what every model reads.

    Text: each part is encoded on its own, as in openai/lm-human-preferences; special tokens go before the prompt only,
    and no EOS is appended. Chat: the completion is what the template adds to the prompt with its generation prompt.

    Args:
        processing_class: The tokenizer.
        prompt: Text or chat messages.
        completion: Of the prompt's kind.
        template: Goes to the chat template (`tools`, ...).

    Raises:
        ValueError: a text with a chat, or a template that renders the prompt differently once an answer follows.
    """
    if isinstance(prompt, list) != isinstance(completion, list):
        raise ValueError(
            f"`prompt` is a {type(prompt).__name__} and its completion a {type(completion).__name__}; give both as "
            "text or both as lists of messages."
        )
    prompt_ids = _tokenize_prompt(processing_class, prompt, **template)
    if isinstance(completion, str):
        return prompt_ids, _encode(processing_class, completion)
    whole = _render(processing_class, [*prompt, *completion], **template)
    if whole[: len(prompt_ids)] != prompt_ids:
        raise ValueError(
            "the chat template renders the prompt differently once an answer follows, so the answer's tokens cannot "
            "be told apart; use a template that only appends, or give `prompt_ids` and `completion_ids`."
        )
    return prompt_ids, whole[len(prompt_ids) :]


def prepare_preferences(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase | None,
    *,
    loss_type: str = "best_of_k",
    max_length: int | None = None,
    context_limit: int | None = None,
    vocab_size: int | None = None,
    least_left: int = 1,
    num_proc: int | None = None,
    name: str = "train",
) -> Dataset | IterableDataset:
    """Check, tokenise and clean records of any accepted format.

    Dropped, counted and logged as a warning (for an `IterableDataset`, which has no count, silently): records longer
    than `max_length`, records whose judgement orders no two candidates (or, for a best-of-K label, names no single
    best), and candidates identical to another one of their record, with the record if fewer than two remain. A label
    on a dropped copy moves to its twin, a ranking keeps the better place, scores are averaged.

    Args:
        dataset: The records; columns that are not ours stay.
        processing_class: The tokenizer; not needed for tokenised records.
        loss_type: A key of `JUDGEMENTS`. For "best_of_k" a missing `label` is read from `ranking` or `scores`.
        max_length: Most tokens of a prompt with one of its completions; longer records are dropped.
        context_limit: Most tokens the model can read; longer records, if `max_length` let them through, are refused.
        vocab_size: Ids the model knows; a record with another one is refused.
        least_left: Records below which it is an error that `max_length` drops more than half.
        num_proc: Processes for a `Dataset`.
        name: What messages call the dataset.

    Returns:
        The dataset with `prompt_ids`, `completion_ids` and the judgement. Prepared records pass through unchanged.

    Raises:
        ValueError: a wrong record, named by row, field and value; nothing left; or identical candidates in more than
            a tenth of the records.
    """
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"`{name}` has no records; check where it was loaded from.")
    if not isinstance(dataset, Dataset) or dataset.format["type"] != "custom":  # which is a transform of one's own
        dataset = dataset.with_format(None)  # of `torch` or the like, which makes tensors of numbers and lists
    columns = dataset.column_names or list(next(iter(dataset)))
    _require_columns(columns, loss_type, name)
    kwargs = {
        "processing_class": processing_class,
        "judgement": _judgement(columns, loss_type),
        "loss_type": loss_type,
        "max_length": math.inf if max_length is None else max_length,
        "context_limit": math.inf if context_limit is None else context_limit,
        "vocab_size": math.inf if vocab_size is None else vocab_size,
        "name": name,
    }
    sized = {"num_proc": num_proc, "desc": f"Preparing {name}"} if isinstance(dataset, Dataset) else {}
    with PartialState().main_process_first():
        dataset = dataset.map(_prepare_record, with_indices=True, fn_kwargs=kwargs, **sized)
        if isinstance(dataset, Dataset):
            _report(dataset, max_length, least_left, name)
        dataset = _with_whole_labels(dataset.filter(_keep, input_columns=[_DROPPED]))
        if isinstance(dataset, Dataset) and kwargs["judgement"] == "label":
            warn_of_labels_from_one(dataset["label"][:], dataset["completion_ids"], name)
    return dataset.remove_columns([_DROPPED, _IDENTICAL, _REPEATED, *_unused_judgements(columns, loss_type)])


def _with_whole_labels(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Labels as integers; a column of floats, which a table with gaps makes, stays one whatever `map` returns."""
    feature = (dataset.features or {}).get("label")
    is_float = isinstance(feature, Value) and feature.dtype.startswith("float")
    return dataset.cast_column("label", Value("int64")) if is_float else dataset


def _keep(dropped: str) -> bool:
    return not dropped


def _prepare_record(
    record: dict[str, Any],
    row: int,
    processing_class: PreTrainedTokenizerBase,
    judgement: str | None,
    loss_type: str,
    max_length: float,
    context_limit: float,
    vocab_size: float,
    name: str,
) -> dict[str, Any]:
    where = f"Row {row} of `{name}`"
    prompt_ids, completion_ids = _tokenized(record, processing_class, where)
    if not all(completion_ids):
        raise ValueError(f"{where}: completion {completion_ids.index([])} has no tokens; drop it or the record.")
    verdict = {judgement: record[judgement]} if judgement else {"label": 0}
    for key, value in verdict.items():
        CHECKS[key](value, len(completion_ids), where)
    if judgement == "label":
        verdict["label"] = int(verdict["label"])
        require_agreement(record, verdict["label"], len(completion_ids), where)
    require_margin(record, where)
    require_known_ids([prompt_ids, *completion_ids], vocab_size, where)
    repeated = repeats_prompt(*_parts(record))
    kept, verdict = _merge_identical(completion_ids, verdict)
    identical = len(kept) < len(completion_ids)
    if loss_type == "best_of_k":
        verdict["label"] = _best(verdict)
    length = len(prompt_ids) + max(len(completion_ids[i]) for i in kept)
    dropped = ""
    if len(kept) < 2:
        dropped = "identical"
    elif length > max_length:
        dropped = "too long"
    elif length > context_limit:
        raise ValueError(f"{where} has {length} tokens, the model reads {context_limit}; lower `max_length` to that.")
    elif _orders_nothing(verdict, loss_type):
        dropped = "tied"
    ids = {"prompt_ids": prompt_ids, "completion_ids": [completion_ids[i] for i in kept]}
    return {**ids, **verdict, _DROPPED: dropped, _IDENTICAL: identical, _REPEATED: repeated}


def _tokenized(
    record: dict[str, Any], processing_class: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[list[int]]]:
    """Prompt ids and the K lists of completion ids of a record in any format."""
    if "completion_ids" in record:
        prompt_ids, completion_ids = record["prompt_ids"], record["completion_ids"]
    elif "chosen_ids" in record:
        prompt_ids, completion_ids = [], [record["chosen_ids"], record["rejected_ids"]]
    else:
        return _tokenized_text(record, processing_class, where)
    require_k(completion_ids, "completion_ids", where)
    return list(prompt_ids), completion_ids


def _tokenized_text(
    record: dict[str, Any], processing_class: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[list[int]]]:
    tools = record.get("tools")
    template = {"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}
    template |= record.get("chat_template_kwargs") or {}
    completions = record["completions"] if "completions" in record else [record["chosen"], record["rejected"]]
    require_k(completions, "completions", where)
    for k, completion in enumerate(completions):
        require_text(completion, f"completion {k}", where)
    if "prompt" not in record:
        return [], [_tokenize_whole(processing_class, whole, **template) for whole in completions]
    prompt = record["prompt"]
    require_text(prompt, "`prompt`", where)
    try:
        pairs = [tokenize_prompt_completion(processing_class, prompt, c, **template) for c in completions]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return pairs[0][0], [completion_ids for _, completion_ids in pairs]


def _parts(record: dict[str, Any]) -> tuple[Any, Sequence[Any]]:
    """Prompt and completions of a record as they were given, the prompt None where it is inside them."""
    if "completions" in record:
        return record.get("prompt"), record["completions"]
    if "completion_ids" in record:
        return record["prompt_ids"], record["completion_ids"]
    return record.get("prompt"), [record[name] for name in ("chosen", "rejected") if name in record]


def _tokenize_whole(processing_class: PreTrainedTokenizerBase, whole: str | list[dict], **template: Any) -> list[int]:
    """A prompt and its completion given as one text or chat (TRL's implicit prompt)."""
    if isinstance(whole, list):
        return _render(processing_class, whole, **template)
    return _leading_special_ids(processing_class) + _encode(processing_class, whole)


def _encode(processing_class: PreTrainedTokenizerBase, text: str) -> list[int]:
    return processing_class(text, add_special_tokens=False)["input_ids"]


def _render(processing_class: PreTrainedTokenizerBase, messages: list[dict], **template: Any) -> list[int]:
    if processing_class.chat_template is None and "chat_template" not in template:
        raise ValueError(
            "the data holds chat messages, but the tokenizer has no chat template; set `tokenizer.chat_template`, or "
            "give text."
        )
    return processing_class.apply_chat_template(messages, tokenize=True, return_dict=True, **template)["input_ids"]


def _leading_special_ids(processing_class: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text; what some put behind it (EOS) is left out."""
    plain, special = _encode(processing_class, "a"), processing_class("a")["input_ids"]
    starts = (i for i in range(len(special)) if special[i : i + len(plain)] == plain)
    return special[: next(starts)]


def _merge_identical(completion_ids: Sequence[list[int]], verdict: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """Indices of the candidates that are not copies of an earlier one, and the judgement in terms of these."""
    kept: list[int] = []
    new_index: list[int] = []  # of each candidate among the kept ones
    for i, ids in enumerate(completion_ids):
        twin = next((n for n, j in enumerate(kept) if completion_ids[j] == ids), None)
        new_index.append(len(kept) if twin is None else twin)
        if twin is None:
            kept.append(i)
    if len(kept) == len(completion_ids):
        return kept, dict(verdict)
    merged: dict[str, Any] = {}
    if "label" in verdict:
        merged["label"] = new_index[verdict["label"]]
    if "ranking" in verdict:
        merged["ranking"] = list(dict.fromkeys(new_index[i] for i in verdict["ranking"]))
    if "scores" in verdict:
        scored = list(zip(new_index, verdict["scores"], strict=True))
        merged["scores"] = [fmean(score for new, score in scored if new == n) for n in range(len(kept))]
    return kept, merged


def _best(verdict: dict[str, Any]) -> int:
    """The label; -1 where the highest score is tied."""
    if "label" in verdict:
        return verdict["label"]
    if "ranking" in verdict:
        return verdict["ranking"][0]
    top = max(verdict["scores"])
    return verdict["scores"].index(top) if verdict["scores"].count(top) == 1 else -1


def _orders_nothing(verdict: dict[str, Any], loss_type: str) -> bool:
    if loss_type == "best_of_k":
        return verdict["label"] < 0
    return loss_type != "scalar" and len(set(verdict.get("scores", [0, 1]))) == 1


def _has_lists(columns: Sequence[str]) -> bool:
    """Whether the completions are in one column; otherwise they are TRL's pairs, judged by their names."""
    return {"prompt", "completions"} <= set(columns) or {"prompt_ids", "completion_ids"} <= set(columns)


def _judgement(columns: Sequence[str], loss_type: str) -> str | None:
    """The judgement column used; None for TRL's pairs."""
    serving = [column for column in JUDGEMENTS[loss_type] if column in columns]
    return serving[0] if serving and _has_lists(columns) else None


def _unused_judgements(columns: Sequence[str], loss_type: str) -> list[str]:
    """Judgements that the loss would take for its own if they stayed beside the one used."""
    if loss_type == "best_of_k":
        return []
    used = _judgement(columns, loss_type) or "label"
    return [column for column in JUDGEMENTS[loss_type] if column in columns and column != used]


def _require_columns(columns: Sequence[str], loss_type: str, name: str) -> None:
    pairs = {"chosen", "rejected"} <= set(columns) or {"chosen_ids", "rejected_ids"} <= set(columns)
    lists = _has_lists(columns)
    if not pairs and not lists:
        raise ValueError(
            f"`{name}` has the columns {sorted(columns)}; give `prompt` and `completions` with `label`, `ranking` or "
            "`scores`, or `chosen` and `rejected`, or the same tokenised (`prompt_ids` and `completion_ids`)."
        )
    if pairs and not lists and loss_type in ("ranking", "scalar"):
        raise ValueError(
            f"`{name}` has `chosen` and `rejected`, which `loss_type='{loss_type}'` cannot use; take 'best_of_k' or "
            "'pairwise'."
        )
    if lists and _judgement(columns, loss_type) is None:
        raise ValueError(
            f"`{name}` has the columns {sorted(columns)}, but `loss_type='{loss_type}'` needs "
            f"{' or '.join(f'`{column}`' for column in JUDGEMENTS[loss_type])}; add the column or take another loss."
        )
    labelled = loss_type == "pairwise" and _judgement(columns, loss_type) in (None, "label")
    if "margin" in columns and loss_type != "best_of_k" and not labelled:
        raise ValueError(
            f"`{name}` has a `margin`, which `loss_type='{loss_type}'` can only use with a `label`; remove the column."
        )


def _report(dataset: Dataset, max_length: int | None, least_left: int, name: str) -> None:
    total = len(dataset)
    dropped = Counter(reason for reason in dataset[_DROPPED] if reason)
    check_dropped(dropped, sum(dataset[_IDENTICAL]), total, max_length, least_left, name)
    check_repeated_prompts(sum(dataset[_REPEATED]), total, name)
