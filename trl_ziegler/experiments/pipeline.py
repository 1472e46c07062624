"""Runs the stages of an experiment, each leaving an artifact folder with a manifest in the run directory.

A stage writes into `<stage>.partial`; the folder gets its manifest last and is then renamed to `<stage>`, so a folder
without suffix is complete. On the next run a complete stage with the same settings is skipped, one with other settings
is moved aside and run again, and a partial one continues from its last checkpoint (training) or starts over; one that
other settings left partial is moved aside too, as people's labels may lie in it.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.logging import get_logger

from .._files import write_text
from .._version import __version__
from .cards import readdress_cards

logger = get_logger(__name__)

MANIFEST = "manifest.json"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Args:
        name: Folder name of its artifact.
        run: Writes the artifact into the folder it is given.
        settings: Everything its result depends on besides the artifacts of earlier stages; plain values.
    """

    name: str
    run: Callable[[Path], None]
    settings: dict[str, Any]


def run_stages(
    run_dir: Path, stages: Sequence[Stage], only: str | None = None, reuse_from: str | Path | None = None
) -> None:
    """Run `stages` in order in `run_dir`; `only` is a comma-separated selection.

    Where a run directory below the folder `reuse_from` has a stage complete with the same settings, that and all it
    was made from, a copy takes the place of running it.

    Raises `ValueError` for an unknown stage, or when a selected stage needs an earlier one that is not complete.
    """
    names = [stage.name for stage in stages]
    selected = names if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in selected if name not in names]
    if unknown:
        raise ValueError(f"`stages` names '{unknown[0]}'; the stages of this recipe are {', '.join(names)}.")
    last, upstream = max(selected, key=names.index), ""
    for stage in stages:
        fingerprint = hash_of({"settings": stage.settings, "upstream": upstream})
        done = is_complete(run_dir / stage.name, fingerprint)
        if stage.name in selected and done:
            PartialState().print(f"[{stage.name}] finished before")
        if stage.name in selected and not done:
            twin = find_twin(reuse_from, stage.name, fingerprint)
            PartialState().wait_for_everyone()  # all have looked before one changes anything
            if twin is None:
                _run_stage(run_dir, stage, fingerprint)
            else:
                _copy_stage(run_dir, stage.name, twin)
        elif not done and names.index(stage.name) < names.index(last):
            raise ValueError(
                f"Stage '{stage.name}' is not complete with these settings, and '{last}' builds on it; run it too "
                "(leave `--stages` out, or add it)."
            )
        upstream = fingerprint


def _run_stage(run_dir: Path, stage: Stage, fingerprint: str) -> None:
    state = PartialState()
    folder, partial = run_dir / stage.name, run_dir / f"{stage.name}.partial"
    if state.is_main_process:
        move_aside(folder)
        prepare_partial(partial, fingerprint)
    state.wait_for_everyone()
    state.print(f"[{stage.name}]")
    start = time.perf_counter()
    stage.run(partial)
    state.wait_for_everyone()
    if state.is_main_process:
        manifest = {
            "stage": stage.name,
            "fingerprint": fingerprint,
            "settings": stage.settings,
            "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(),
        }
        write_json(partial / MANIFEST, manifest)
        os.replace(partial, folder)
    state.wait_for_everyone()


def _copy_stage(run_dir: Path, name: str, twin: Path) -> None:
    state = PartialState()
    folder, copy = run_dir / name, run_dir / f"{name}.copy"
    if state.is_main_process:
        move_aside(folder)
        move_aside(run_dir / f"{name}.partial")
        shutil.rmtree(copy, ignore_errors=True)  # what a kill left
        shutil.copytree(twin, copy)
        readdress_cards(copy, name, folder)
        os.replace(copy, folder)
    state.wait_for_everyone()
    state.print(f"[{name}] as in {twin.parent}")


def find_twin(reuse_from: str | Path | None, name: str, fingerprint: str) -> Path | None:
    """The first folder `name` at any depth below `reuse_from` that is the finished artifact of these settings."""
    if reuse_from is None:
        return None
    folders = (manifest.parent for manifest in sorted(Path(reuse_from).rglob(f"{name}/{MANIFEST}")))
    return next((folder for folder in folders if is_complete(folder, fingerprint)), None)


def move_aside(folder: Path) -> None:
    """Free the name of an artifact, whole or partial, if there is one; only one with nothing in it goes."""
    if not folder.exists():
        return
    if {path.name for path in folder.iterdir()} <= {SETTINGS}:
        shutil.rmtree(folder)
        return
    aside = free_name(folder)
    logger.warning(f"{folder} gives way to what the settings now ask for; it is kept as {aside.name}.")
    os.replace(folder, aside)
    readdress_cards(aside, folder.name.removesuffix(".partial"), aside)


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Whether `folder` is the finished artifact of exactly these settings."""
    manifest = folder / MANIFEST
    return manifest.is_file() and json.loads(manifest.read_text())["fingerprint"] == fingerprint


def prepare_partial(partial: Path, fingerprint: str) -> None:
    """Keep a half-written artifact of the same settings, to continue its checkpoints; else move it out of the way."""
    settings = partial / SETTINGS
    if settings.is_file() and json.loads(settings.read_text()) == fingerprint:
        return
    move_aside(partial)
    partial.mkdir(parents=True)
    write_json(settings, fingerprint)


def free_name(folder: Path) -> Path:
    """The first of `<folder>.1`, `<folder>.2`, … that does not exist."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


def hash_of(values: Any) -> str:
    """A fingerprint of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "transformers", "trl", "accelerate", "datasets", "peft")
    return {
        "trl_ziegler": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either the old or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_yaml(path: Path, value: Any) -> None:
    """Write YAML, atomically, in the order given."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_json(path: Path) -> Any:
    """A file's content, None without a file; `ValueError` names one that is not valid JSON."""
    return parse_json(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None


def parse_json(text: str, where: str) -> Any:
    """The value; `ValueError` says where the text is from that is not valid JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}): delete it and run its stage again.") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
