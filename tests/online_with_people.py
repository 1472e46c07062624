"""A run whose labels people give, and the people, each a process of its own.

online_with_people.py run FOLDER       train, waiting for labels (FOLDER/start has the start model)
online_with_people.py answer FOLDER N  answer N comparisons as they come, and end
"""

import json
import sys
import time
from pathlib import Path

from online_runs import begin, online_logs, trainer_of
from ppo_runs import letter_e

from trl_ziegler.labelers.human import HumanLabeler, LabelStore


def run(folder: Path) -> None:
    labeler = HumanLabeler(LabelStore(folder / "labels.db"), repeats=1, progress=False)
    trainer = trainer_of(folder, begin(folder, labeler, poll_seconds=0.05), save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=any((folder / "run").glob("checkpoint-*")) or None)
    labels = {str(row["online/labels_wanted"]): row["online/labels"] for row in online_logs(trainer)}
    (folder / "result.json").write_text(json.dumps({"steps": trainer.state.global_step, "labels": labels}))


def answer(folder: Path, count: int) -> None:
    store = LabelStore(folder / "labels.db")
    if store.progress():
        store.replace_token("ann")
    else:
        store.add_labeller("ann")
    while count:
        work = store.take("ann")
        if work is None:
            time.sleep(0.02)
            continue
        scores = letter_e([], work.comparison.completions)
        store.answer("ann", work.comparison.id, label=scores.index(max(scores)), seconds=0.1)
        count -= 1


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "run":
        run(folder)
    else:
        answer(folder, int(sys.argv[3]))
