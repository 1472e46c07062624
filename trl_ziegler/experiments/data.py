"""Loading rows from wherever they are: local files, saved datasets, hub ids, all by one argument."""

import re
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
TEXTS = ("json", "csv", "text")
HUB_ID = re.compile(r"[\w.-]{2,}(/[\w.-]+)?")  # one letter before a colon is a drive
CONFIGURATION = re.compile(r"[\w.+-]+")


def load_rows(source: str, *, split: str = "train") -> Dataset:
    """Rows of a local file (json, jsonl, csv, parquet, txt, each also `.gz`), a saved dataset, or a hub id.

    Args:
        source: Path or hub id. One of several configurations of a hub dataset, or of a folder laid out like one,
            follows a colon: `abisee/cnn_dailymail:3.0.0`.
        split: Which split of a saved `DatasetDict` or hub dataset; a single file is one split whatever its name.

    Raises:
        FileNotFoundError: a path with a known ending that does not exist.
        ValueError: a missing split, or a file that is empty, of another kind, or not what its ending says.
    """
    path = Path(source)
    suffix = (path.suffixes[-2:-1] or [""])[0] if path.suffix == ".gz" else path.suffix
    if suffix in BUILDERS and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(
                f"{source} does not exist; give a file, the folder of a saved dataset, or a hub id."
            )
        return _load_file(path, BUILDERS[suffix])
    if path.is_file():
        raise ValueError(f"{source} is a file of a kind that is not read; give {', '.join(BUILDERS)}, each also .gz.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(source)
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise ValueError(f"{source} has the splits {list(saved)}, not '{split}'.")
            return saved[split]
        return saved
    name, configuration = split_configuration(source)
    return load_dataset(name, configuration, split=split)


def _load_file(path: Path, builder: str) -> Dataset:
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; check how it was written.")
    if builder in TEXTS and path.suffix != ".gz":
        _require_utf8(path)
    try:
        return load_dataset(builder, data_files=str(path), split="train")
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        reason = str(error.__cause__ or error) or "no rows"
        raise ValueError(
            f"{path} cannot be read as {builder} ({reason}); it may have been cut in half or be empty, or its rows "
            "differ in their columns."
        ) from None


def _require_utf8(path: Path) -> None:
    """Refuse another encoding, which a reader of JSON lines finds no earlier than when a row is used."""
    try:
        with path.open(encoding="utf-8") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it as that.") from None


def split_configuration(source: str) -> tuple[str, str | None]:
    """`id:configuration` taken apart; the colon of anything else (a drive, a URL, a file's name) is left alone."""
    name, _, configuration = source.rpartition(":")
    if Path(source).exists() or not CONFIGURATION.fullmatch(configuration):
        return source, None
    if HUB_ID.fullmatch(name) or Path(name).is_dir():
        return name, configuration
    return source, None
