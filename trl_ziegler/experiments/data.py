"""Loading rows from wherever they are: local files, saved datasets, hub ids, all by one argument."""

from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_rows(source: str, *, split: str = "train") -> Dataset:
    """Rows of a local file (json, jsonl, csv, parquet, txt, each also `.gz`), a saved dataset, or a hub id.

    Args:
        source: Path or hub id.
        split: Which split of a saved `DatasetDict` or hub dataset; a single file is one split whatever its name.

    Raises:
        FileNotFoundError: a path with a known ending that does not exist.
        ValueError: a missing split.
    """
    path = Path(source)
    suffix = (path.suffixes[-2:-1] or [""])[0] if path.suffix == ".gz" else path.suffix
    if suffix in BUILDERS:
        if not path.is_file():
            raise FileNotFoundError(
                f"{source} does not exist; give a file, the folder of a saved dataset, or a hub id."
            )
        return load_dataset(BUILDERS[suffix], data_files=str(path), split="train")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(source)
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise ValueError(f"{source} has the splits {list(saved)}, not '{split}'.")
            return saved[split]
        return saved
    return load_dataset(source, split=split)
