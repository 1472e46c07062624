"""Reading and writing the label files of openai/lm-human-preferences (label_types.py:PickBest).

Each record has `query` (L ids), `sample0`..`sample{K-1}` (T ids each, already cut) and `best` in 0..K-1; both kinds of
list are filled up with an id outside the vocabulary. Axis letters: L query tokens, T response tokens, K candidates.
"""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ._files import write_bytes

OPENAI_PAD_TOKEN_ID = 50259


def load_openai_labels(path: str | os.PathLike, *, pad_token_id: int = OPENAI_PAD_TOKEN_ID) -> Dataset:
    """Read a label file into `prompt_ids`, `completion_ids` and `label`, in file order and without padding.

    The released recipes train on the *first* records of a file: select them before any shuffling.

    Args:
        path: JSON (one list) or JSON lines, gzipped if the name ends in `.gz`.
        pad_token_id: The filler.

    Raises:
        ValueError: a file cut in half, a record with a missing field, another width or K than the first, an entry of
            padding only, or `best` outside 0..K-1.
    """
    records = _read(Path(path))
    if not records:
        raise ValueError(f"{path} holds no records; check that it is a label file.")
    names = [f"sample{k}" for k in range(sum(key.startswith("sample") for key in records[0]))]
    widths = {name: len(records[0].get(name, [])) for name in ["query", *names]}
    if "query" not in records[0] or len(names) < 2 or len({widths[name] for name in names}) != 1:
        raise ValueError(
            f"{path}, record 0 has the fields {sorted(records[0])} of lengths {widths}; a label file has `query`, "
            "`sample0`, `sample1`, ... of one width, and `best`."
        )
    for row, record in enumerate(records):
        _check(record, widths, pad_token_id, f"{path}, record {row}")
    strip = {name: [_without(record[name], pad_token_id) for record in records] for name in widths}
    return Dataset.from_dict(
        {
            "prompt_ids": strip["query"],
            "completion_ids": [list(samples) for samples in zip(*(strip[name] for name in names), strict=True)],
            "label": [record["best"] for record in records],
        }
    )


def save_openai_labels(
    dataset: Dataset,
    path: str | os.PathLike,
    *,
    query_length: int,
    response_length: int,
    pad_token_id: int = OPENAI_PAD_TOKEN_ID,
) -> None:
    """Write `prompt_ids`, `completion_ids` and `label` as a label file; the inverse of `load_openai_labels`.

    Args:
        dataset: Every record has the same K.
        path: The file; it appears complete or not at all.
        query_length: L, to which queries are filled up.
        response_length: T, to which responses are filled up.
        pad_token_id: The filler.

    Raises:
        ValueError: an entry longer than its width, or a record with another K than the first.
    """
    records: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for row, record in enumerate(dataset):
        first = first or record  # kept: a data set decodes a record anew each time it is asked
        if len(record["completion_ids"]) != len(first["completion_ids"]):
            raise ValueError(
                f"Record {row} has {len(record['completion_ids'])} completions, the first one "
                f"{len(first['completion_ids'])}; a label file has one K, so write one file for each."
            )
        out = {"query": _filled(record["prompt_ids"], query_length, pad_token_id, f"Record {row}: `prompt_ids`")}
        for k, ids in enumerate(record["completion_ids"]):
            out[f"sample{k}"] = _filled(ids, response_length, pad_token_id, f"Record {row}: completion {k}")
        records.append({**out, "best": record["label"]})
    data = json.dumps(records).encode()
    write_bytes(path, gzip.compress(data) if Path(path).suffix == ".gz" else data)


def _read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    except (EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not complete JSON ({error}); it may have been cut in half, so fetch it again."
        ) from None


def _check(record: dict[str, Any], widths: dict[str, int], pad_token_id: int, where: str) -> None:
    for name, width in widths.items():
        ids = record.get(name)
        if not isinstance(ids, list) or len(ids) != width:
            found = len(ids) if isinstance(ids, list) else repr(ids)
            raise ValueError(f"{where}: `{name}` is {found} wide, in record 0 it is {width}; pad all to one width.")
        if set(ids) <= {pad_token_id}:
            raise ValueError(f"{where}: `{name}` holds no token but the padding id {pad_token_id}; drop the record.")
    if f"sample{len(widths) - 1}" in record:
        raise ValueError(f"{where}: `sample{len(widths) - 1}` is one more than in record 0; split the file by K.")
    best, k = record.get("best"), len(widths) - 1
    if not isinstance(best, int) or not 0 <= best < k:
        raise ValueError(f"{where}: `best` is {best!r}, but with {k} samples it is in 0..{k - 1}; correct it.")


def _without(ids: Sequence[int], pad_token_id: int) -> list[int]:
    return [i for i in ids if i != pad_token_id]


def _filled(ids: Sequence[int], width: int, pad_token_id: int, what: str) -> list[int]:
    if len(ids) > width:
        raise ValueError(f"{what} has {len(ids)} tokens, more than the width {width}; raise the width or cut it.")
    return [*ids, *[pad_token_id] * (width - len(ids))]
