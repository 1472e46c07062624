"""What online collection keeps on disk, so that a run killed at any point goes on: requests, labels, reward models.

    comparisons-000000.jsonl   records that labellers were asked, a file for each request, named by its first record
    labels.jsonl               one line per label, appended; of several for a record the last holds
    reward_00/                 model/, what its training left, and training.json: after which episode, on which labels
    collection.json            the schedule, the labeller, the trainings, and why a stopped run stopped

Every file but `labels.jsonl` is written in one piece; a last line of that which was cut off is dropped.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from ._files import write_jsonl, write_text
from .online_schedule import LabelSchedule

RECORDS = "comparisons-{first:06d}.jsonl"
LABELS = "labels.jsonl"
REWARD = "reward_{number:02d}"
TRAINING = "training.json"
SUMMARY = "collection.json"


class CollectionFiles:
    """The folder of one collection. One process writes; others read what it has announced.

    Args:
        folder: Made if it is not there.
        schedule: What the labels are collected by.
        labeler: What the labeller is known by; a folder that does not say whose labels it has takes any.

    Attributes:
        found: How many labels lay there before, once the writer has started.

    Raises:
        ValueError: the folder belongs to a collection with another schedule or another labeller.
    """

    def __init__(self, folder: str | os.PathLike, schedule: LabelSchedule, labeler: str) -> None:
        self.folder, self._labeler, self.found = Path(folder), labeler, 0
        self._schedule = {"kind": type(schedule).__name__, **asdict(schedule)}  # type: ignore[call-overload]
        former = {"schedule": self._schedule, "labeler": labeler, **self.summary()}
        if former["schedule"] != self._schedule:
            raise ValueError(
                f"{self.folder} was collected by the schedule {former['schedule']}, this one is {self._schedule}; "
                "give the former schedule or another folder."
            )
        if former["labeler"] != labeler:
            raise ValueError(
                f"{self.folder} has labels of {former['labeler']}, this labeller is {labeler}; give the former one or "
                f"another folder, or delete `labeler` from {SUMMARY} to go on with labels of both."
            )

    def start(self) -> None:
        """Make the folder, forget a former stop, and drop the end of a label that was cut off; the writer's part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = self.folder / LABELS
        if labels.is_file():
            whole = labels.read_bytes()
            os.truncate(labels, whole.rfind(b"\n") + 1)
        self.found = len(self.labels)
        self.summarize(None)

    # ---- Records and labels -----------------------------------------------------------------------------------------

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """All records requested so far, in order; the number of each is its place."""
        files = sorted(self.folder.glob("comparisons-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    @cached_property
    def labels(self) -> dict[int, int]:
        """Label of each labelled record, by its number, in the order in which they came."""
        file = self.folder / LABELS
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return {row["number"]: row["label"] for row in map(json.loads, lines)}

    def add_records(self, records: list[dict[str, Any]]) -> None:
        """Keep records before labellers are asked, so that none is asked that a resumed run does not know."""
        write_jsonl(self.folder / RECORDS.format(first=len(self.records)), records)
        self.records.extend(records)

    def add_labels(self, labels: Mapping[int, int]) -> None:
        """Append the labels that are not known yet, or differ from what is."""
        fresh = {number: label for number, label in labels.items() if self.labels.get(number) != label}
        if not fresh:
            return
        with (self.folder / LABELS).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"number": n, "label": b}) + "\n" for n, b in fresh.items())
            file.flush()
            os.fsync(file.fileno())
        self.labels.update(fresh)

    def labelled(self) -> list[dict[str, Any]]:
        """The records that have a label, with it, in the order of the requests."""
        return [{**row, "label": self.labels[i]} for i, row in enumerate(self.records) if i in self.labels]

    # ---- Reward models ----------------------------------------------------------------------------------------------

    def reward(self, number: int) -> Path:
        """Folder of a finished reward model."""
        return self.folder / REWARD.format(number=number)

    def partial_reward(self, number: int) -> Path:
        """Folder of a reward model in the making."""
        return self.reward(number).with_suffix(".partial")

    def begin_reward(self, number: int, episode: int) -> None:
        """Fix the labels that a reward model is trained on; an interrupted training keeps those it began with."""
        partial = self.partial_reward(number)
        partial.mkdir(exist_ok=True)
        if not (partial / TRAINING).is_file():
            labels = sorted(self.labels.items())
            write_text(partial / TRAINING, json.dumps({"number": number, "episode": episode, "labels": labels}))

    def training_rows(self, partial: Path) -> list[dict[str, Any]]:
        """The labelled records a reward model is trained on."""
        labels = json.loads((partial / TRAINING).read_text())["labels"]
        # Read anew: a process that does not collect has not followed the records.
        self.__dict__.pop("records", None)
        return [{**self.records[number], "label": label} for number, label in labels]

    def finish_reward(self, number: int) -> None:
        """Declare the training of `begin_reward` complete; model cards name the folder as it is called from now on."""
        partial, reward = self.partial_reward(number), self.reward(number)
        for card in partial.rglob("README.md"):
            write_text(card, card.read_text(encoding="utf-8").replace(str(partial), str(reward)))
        os.replace(partial, reward)
        self.summarize(None)

    def summary(self) -> dict[str, Any]:
        """What `collection.json` says; nothing where it is not written yet."""
        file = self.folder / SUMMARY
        return json.loads(file.read_text()) if file.is_file() else {}

    def summarize(self, stopped: dict[str, Any] | None) -> None:
        """Write `collection.json`."""
        trainings = [json.loads(file.read_text()) for file in sorted(self.folder.glob(f"reward_*/{TRAINING}"))]
        finished = [row for row in trainings if self.reward(row["number"]).is_dir()]
        summary = {
            "schedule": self._schedule,
            "labeler": self._labeler,
            "trainings": [{**row, "labels": len(row["labels"])} for row in finished],
            "stopped": stopped,
        }
        write_text(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
