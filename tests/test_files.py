"""Files and folders are written whole or not at all."""

import pytest

from trl_ziegler._files import written_whole


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_moved_when_all_are_written(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("kept")
    (tmp_path / "model" / "weights").write_text("old")
    with written_whole(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
        (folder / "head").mkdir()
        (folder / "head" / "weights").write_text("w")
        assert (tmp_path / "model" / "weights").read_text() == "old"
    assert contents(tmp_path) == {"model/old": "kept", "model/weights": "new", "model/head/weights": "w"}


def test_a_failure_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "weights").write_text("old")
    with pytest.raises(OSError, match="disk full"), written_whole(tmp_path) as folder:
        (folder / "weights").write_text("half")
        raise OSError("disk full")
    assert contents(tmp_path) == {"weights": "old"}
