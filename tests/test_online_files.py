"""What online collection keeps on disk, read back by another process."""

import json

import pytest

from trl_ziegler.online_files import CollectionFiles
from trl_ziegler.online_schedule import CollectionSchedule, RoundSchedule

SCHEDULE = CollectionSchedule(initial=2, total=4, episodes=8)


@pytest.fixture
def files(tmp_path):
    """Three records, two of them labelled."""
    files = CollectionFiles(tmp_path / "online", SCHEDULE, "Ann")
    files.start()
    files.add_records([{"number": 0, "prompt": "a"}, {"number": 1, "prompt": "b"}])
    files.add_records([{"number": 2, "prompt": "c"}])
    files.add_labels({2: 1, 0: 3})
    return files


def again(files) -> CollectionFiles:
    """The same folder in a process that starts."""
    later = CollectionFiles(files.folder, SCHEDULE, "Ann")
    later.start()
    return later


def test_records_and_labels_come_back(files):
    later = again(files)
    assert [row["prompt"] for row in later.records] == ["a", "b", "c"]
    assert later.labels == {2: 1, 0: 3} == files.labels
    assert later.labelled() == [{"number": 0, "prompt": "a", "label": 3}, {"number": 2, "prompt": "c", "label": 1}]
    assert sorted(path.name for path in files.folder.glob("comp*")) == [
        "comparisons-000000.jsonl",
        "comparisons-000002.jsonl",
    ]


def test_a_label_that_changes_counts_as_it_is_last_and_others_are_written_once(files):
    files.add_labels({0: 3, 2: 0, 1: 2})
    assert again(files).labels == {2: 0, 0: 3, 1: 2} == files.labels
    lines = [json.loads(line) for line in (files.folder / "labels.jsonl").read_text().splitlines()]
    assert [(row["number"], row["label"]) for row in lines] == [(2, 1), (0, 3), (2, 0), (1, 2)]


@pytest.mark.parametrize("left", ['{"number": 1', '{"number": 1, "label": 2}'])
def test_the_end_of_a_label_that_was_cut_off_is_dropped(files, left):
    """Without its line end the last number may be half of one."""
    with (files.folder / "labels.jsonl").open("a") as file:
        file.write(left)
    later = again(files)
    assert later.labels == {2: 1, 0: 3}
    later.add_labels({1: 0})
    assert again(later).labels == {2: 1, 0: 3, 1: 0}


def test_an_interrupted_training_keeps_the_labels_it_began_with(files):
    files.begin_reward(0, 0)
    files.add_labels({1: 0})
    later = again(files)
    later.begin_reward(0, 4)
    rows = later.training_rows(later.partial_reward(0))
    assert [(row["prompt"], row["label"]) for row in rows] == [("a", 3), ("c", 1)]


def test_a_process_that_does_not_write_sees_records_that_came_later(files):
    other = CollectionFiles(files.folder, SCHEDULE, "Ann")
    assert len(other.records) == 3
    files.add_records([{"number": 3, "prompt": "d"}])
    files.add_labels({3: 0})
    files.begin_reward(1, 4)
    assert [row["prompt"] for row in other.training_rows(other.partial_reward(1))] == ["a", "c", "d"]


def test_the_summary_names_finished_trainings_and_the_stop(files):
    files.begin_reward(0, 0)
    files.finish_reward(0)
    files.add_labels({1: 0})
    files.begin_reward(2, 4)
    files.summarize({"episode": 4, "reason": "enough"})
    summary = json.loads((files.folder / "collection.json").read_text())
    assert summary["trainings"] == [{"number": 0, "episode": 0, "labels": 2}]
    assert summary["stopped"] == {"episode": 4, "reason": "enough"}
    assert summary["schedule"]["total"] == 4
    again(files)
    assert json.loads((files.folder / "collection.json").read_text())["stopped"] is None


@pytest.mark.parametrize(
    "other",
    [CollectionSchedule(initial=2, total=5, episodes=8), RoundSchedule(labels_per_round=2, rounds=2, episodes=8)],
)
def test_another_schedule_is_refused(files, other):
    with pytest.raises(ValueError, match=r"online was collected by the schedule .*'total': 4.*give the former"):
        CollectionFiles(files.folder, other, "Ann")


def test_another_labeller_is_refused(files):
    with pytest.raises(ValueError, match=r"online has labels of Ann, this labeller is Bob; give .* or delete `lab"):
        CollectionFiles(files.folder, SCHEDULE, "Bob")


def test_a_folder_that_does_not_name_its_labeller_is_taken(files):
    summary = files.folder / "collection.json"
    former = json.loads(summary.read_text())
    del former["labeler"]
    summary.write_text(json.dumps(former))
    CollectionFiles(files.folder, SCHEDULE, "Bob").start()
    assert json.loads(summary.read_text())["labeler"] == "Bob"


def test_labels_that_lay_there_before_are_counted(files):
    assert files.found == 0
    assert again(files).found == 2


def test_cards_of_a_finished_reward_model_name_its_final_folder(files):
    files.begin_reward(0, 0)
    partial = files.partial_reward(0) / "model"
    partial.mkdir()
    (partial / "README.md").write_text(f'# Über\nload_reward_model("{partial}")\n', encoding="utf-8")
    files.finish_reward(0)
    model = files.reward(0) / "model"
    assert (model / "README.md").read_text(encoding="utf-8") == f'# Über\nload_reward_model("{model}")\n'
