"""What a comparison is: its identity, how often it is asked, how it is shown, and the checks of what comes in."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .schema import Comparison

AGREEMENT_SHARE = 0.05
"""Share of comparisons that several people answer, so that their agreement is known (Ziegler et al. 2019)."""

AGREEMENT_REPEATS = 5
"""How many people answer each of those."""

OWN_COLUMNS = ("prompt", "completions", "source", "step", "task", "seed", "repeats")
"""The columns of a record that `Comparison` has a place for; all others are kept in `extra`."""

RESERVED = ("id", "label", "answers", "created_at")
"""Columns of exported files that are no part of a comparison."""

_SHORTENED = 80  # characters of a wrong value that a message repeats


def comparison_id(
    prompt: Any,
    completions: Sequence[Any],
    *,
    source: str | None = None,
    step: int | None = None,
    task: str | None = None,
) -> str:
    """SHA-256 (64 hex digits) of what is compared, of the question asked and of where the completions come from.

    The display seed, the number of repeats and other columns do not count: they do not make it another comparison.
    """
    content = [task, prompt, list(completions), source, step]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_identity(value: Any) -> bool:
    """Whether `value` looks like a `comparison_id`."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def wanted_answers(identity: str) -> int:
    """`AGREEMENT_REPEATS` for a share `AGREEMENT_SHARE` of all comparisons, picked by their id; 1 for the others."""
    return AGREEMENT_REPEATS if int(identity[:8], 16) < AGREEMENT_SHARE * 2**32 else 1


def display_order(comparison: Comparison, labeller: str) -> list[int]:
    """The original indices in the order in which `labeller` sees them: a permutation of 0..K-1.

    It follows from the comparison's seed and id and the labeller's name, so a page shown again looks the same, while
    several labellers see different orders. Uniform over permutations: indices are sorted by a hash each.
    """

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{comparison.seed} {comparison.id} {index} {labeller}".encode()).digest()

    return sorted(range(len(comparison.completions)), key=key)


def comparison_values(record: Mapping[str, Any], where: str, repeats: int | None) -> dict[str, Any]:
    """The columns of a `Comparison` out of a checked record; what else the record holds goes to `extra`.

    Args:
        record: `prompt` and `completions`; `source`, `step`, `task`, `seed` (0) and `repeats` where they are known.
        where: What messages call the record.
        repeats: Of records without their own; None for `wanted_answers`.

    Raises:
        ValueError: a column that is missing, reserved, or of a wrong kind.
    """
    for name in RESERVED:
        if name in record:
            raise ValueError(f"{where} has `{name}`, which is no part of a comparison; remove it or import the file.")
    prompt, completions = _texts(record, where)
    origin = {name: _optional_text(record.get(name), name, where) for name in ("source", "task")}
    step = record.get("step")
    if step is not None:
        check_count(step, "step", where, least=0)
    seed = 0 if record.get("seed") is None else record["seed"]
    check_count(seed, "seed", where, least=-(2**31))
    identity = comparison_id(prompt, completions, step=step, **origin)
    asked = repeats if record.get("repeats") is None else record["repeats"]
    wanted = wanted_answers(identity) if asked is None else asked
    check_count(wanted, "repeats", where, least=1)
    own = {"id": identity, "prompt": prompt, "completions": completions, "step": step, "seed": seed, **origin}
    return {**own, "repeats": wanted, "extra": _extra(record, where)}


def check_name(name: Any) -> None:
    """Refuse what cannot be a labeller's name."""
    if not isinstance(name, str) or not name.strip() == name or not name.isprintable() or not 0 < len(name) <= 200:
        raise ValueError(
            f"labeller={_shown(name)} is no name; give 1 to 200 printable characters without spaces at the ends."
        )


def check_words(words: Any, field: str, act: str) -> None:
    """Refuse an act without a word why, or without a name."""
    if not isinstance(words, str) or not words.strip():
        raise ValueError(f"{field}={_shown(words)} says nothing; give the {field} of {act} in words.")
    _check_unicode(words, f"`{field}`", act)


def check_seconds(seconds: Any) -> None:
    """Refuse what cannot be the time that an answer took."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds={_shown(seconds)} is no duration; give the seconds from display to answer.")


def check_index(index: Any, k: int, field: str) -> None:
    """Refuse what is no index of K completions."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < k:
        raise ValueError(f"{field}={_shown(index)} points at no completion; with {k} of them it is in 0..{k - 1}.")


def check_count(value: Any, field: str, where: str, *, least: int) -> None:
    """Refuse what is no whole number that a database column can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(f"{where}: `{field}` is {_shown(value)}; give a whole number from {least} to {2**31 - 1}.")


def _texts(record: Mapping[str, Any], where: str) -> tuple[Any, list[Any]]:
    for name in ("prompt", "completions"):
        if name not in record:
            raise ValueError(f"{where} has no `{name}`; give `prompt` and `completions`, not {sorted(record)}.")
    completions = record["completions"]
    if not isinstance(completions, list | tuple) or len(completions) < 2:
        raise ValueError(
            f"{where}: `completions` is {_shown(completions)}; a choice needs a list of 2 or more, so drop the record."
        )
    prompt = _text(record["prompt"], "`prompt`", where)
    texts = [_text(completion, f"completion {k}", where) for k, completion in enumerate(completions)]
    if any(isinstance(text, str) != isinstance(prompt, str) for text in texts):
        raise ValueError(f"{where} mixes plain text and chat messages; give the prompt and all completions alike.")
    if all(text == texts[0] for text in texts):
        raise ValueError(f"{where}: all {len(texts)} completions are identical; drop the record.")
    return prompt, texts


def _text(value: Any, field: str, where: str) -> Any:
    """A checked text or chat; messages lose the empty keys that Arrow gives them, which would change the hash."""
    if isinstance(value, str) and value:
        _check_unicode(value, field, where)
        return value
    chat = isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value)
    if not chat or not all(_is_message(message) for message in value):
        raise ValueError(f"{where}: {field} is {_shown(value)}; give non-empty text or chat messages.")
    for message in value:
        _check_unicode(json.dumps(message, ensure_ascii=False), field, where)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _is_message(message: Mapping[str, Any]) -> bool:
    said = message.get("content") or message.get("tool_calls")
    return isinstance(message.get("role"), str) and bool(said)


def _optional_text(value: Any, field: str, where: str) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise ValueError(f"{where}: `{field}` is {_shown(value)}; give its name as text, or leave it out.")
    if value is not None:
        _check_unicode(value, f"`{field}`", where)
    return value


def _check_unicode(text: str, field: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {field} is no valid Unicode ({error.reason}); decode its source again.") from None


def _extra(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    extra = {name: value for name, value in record.items() if name not in OWN_COLUMNS}
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: the columns {sorted(extra)} cannot be written as JSON ({error}); remove or convert them."
        ) from None
    return extra


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHORTENED else f"{text[:_SHORTENED]}..."
