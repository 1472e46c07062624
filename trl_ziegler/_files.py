"""Folders that must be there, and files of which a killed process leaves the old or the whole new one, never half."""

import contextlib
import glob
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CONFIGURATIONS = ("config.json", "adapter_config.json")
HUB_ID = re.compile(r"[^~./\\][^/\\]*(/[^/\\]+)?")


def folder_or_hub_id(model: str | os.PathLike) -> str:
    """`model` as text; `FileNotFoundError` where it can only be meant as a path, and no model is there."""
    name = os.fspath(model)
    if not os.path.exists(name):
        if HUB_ID.fullmatch(name):
            return name
        raise FileNotFoundError(f"The folder {name} does not exist; give the one of a model, or a hub id.")
    if os.path.isfile(name):
        raise FileNotFoundError(f"{name} is a file; give the folder of a model, or a hub id.")
    if not any(os.path.isfile(os.path.join(name, config)) for config in CONFIGURATIONS):
        raise FileNotFoundError(
            f"The folder {name} holds no model, as it has no {' or '.join(CONFIGURATIONS)}; give the one of a model, "
            "or a hub id."
        )
    return name


@contextlib.contextmanager
def found_model(model: str | os.PathLike, argument: str) -> Iterator[str]:
    """`model` as text, to be loaded under this; what the hub cannot give is an `OSError` that names it.

    The libraries' own errors tell of a connection or a file, seldom of what was asked for.
    """
    name = folder_or_hub_id(model)
    try:
        yield name
    except OSError as error:
        if os.path.exists(name):
            raise
        raise OSError(
            f"`{argument}` is '{name}': there is no such folder, and the hub has no such model or cannot be reached "
            f"({str(error).splitlines()[0]})."
        ) from error


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let `write(temporary path)` make the file beside `path`, then rename it to `path`."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


@contextlib.contextmanager
def written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to write files into, which are moved to `folder` when all of them are complete.

    An exception or a kill before that leaves `folder` as it was, but for what a kill left of the temporary one; the
    next call on this machine removes that.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f".saving-{socket.gethostname()}-"
    for left in folder.glob(f"{glob.escape(prefix)}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def is_alive(process: int) -> bool:
    """Whether this machine has a process of that number, whoever owns it; Windows is not asked, and yes the answer."""
    if os.name == "nt":
        return True  # there, signal 0 would end the process
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_jsonl(path: str | os.PathLike, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
