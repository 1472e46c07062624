"""What labellers are told: one text per task, beside this file in `texts/`, or a researcher's own file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"

TASKS = tuple(sorted(path.stem for path in TEXTS.glob("*.txt")))
"""The tasks that come with instructions."""


@dataclass(frozen=True)
class Block:
    """A paragraph (one line) or, with `is_list`, the lines of a list."""

    lines: Sequence[str]
    is_list: bool


@dataclass(frozen=True)
class Instructions:
    """`question` stands over every comparison; `blocks` explain it."""

    question: str
    blocks: Sequence[Block]


def read_instructions(task: str | None, path: str | os.PathLike | None = None) -> Instructions:
    """The instructions in the file at `path`, by default those that come with `task`.

    A file is plain text in UTF-8: the question in the first paragraph, then paragraphs and lists (each line begins
    with "- "), separated by empty lines.

    Raises:
        ValueError: a task that comes without instructions, or a file without text.
        OSError: a file that cannot be read.
    """
    if path is None and task not in TASKS:
        lack = "no `--task` is given" if task is None else f"the task {task!r} comes without instructions"
        raise ValueError(
            f"What shall the labellers be asked? There is no `--instructions`, and {lack}; give a text file of your "
            f"own, or one of the tasks {', '.join(TASKS)}."
        )
    source = TEXTS / f"{task}.txt" if path is None else Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The instructions {source} are no UTF-8 text ({error.reason}); save them as UTF-8."
        ) from None
    paragraphs = [lines for part in text.split("\n\n") if (lines := _lines(part))]
    if not paragraphs:
        raise ValueError(f"The instructions {source} are empty; begin with the question to answer.")
    question, *rest = paragraphs
    return Instructions(" ".join(question), [_block(lines) for lines in rest])


def _lines(part: str) -> list[str]:
    return [line.strip() for line in part.splitlines() if line.strip()]


def _block(lines: list[str]) -> Block:
    if lines[0].startswith("- "):
        return Block(_items(lines), is_list=True)
    return Block([" ".join(lines)], is_list=False)


def _items(lines: list[str]) -> list[str]:
    """The items of a list; a line without a dash continues the one above."""
    items: list[str] = []
    for line in lines:
        if line.startswith("- "):
            items.append(line[2:])
        else:
            items[-1] += f" {line}"
    return items
