"""A run that collects labels in two processes: whole, then one that waits for labels and is stopped by a labeller.

collect_online.py FOLDER, with the start model in `start` of FOLDER/whole and FOLDER/stopped
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from online_runs import SCHEDULE, RewardTraining, Slow, begin, online_logs, trainer_of

from trl_ziegler.experiments.recipe import end_processes
from trl_ziegler.reward_model import reward_head

folder = Path(sys.argv[1])


def run(name: str, labeler: Slow) -> dict:
    """What this process knows after a run in the folder `name`."""
    target = folder / name
    training = RewardTraining(target / "start")
    collection = begin(target, labeler, training)
    trainer = trainer_of(target, collection, per_device_train_batch_size=2, ddp_backend="gloo")
    trainer.train()
    return {
        "asked": labeler.asked,
        "trained": [(number, rows) for number, rows, _ in training.calls],
        "head": reward_head(trainer.reward.functions[0]).weight.tolist(),
        "policy": sum(float(weight.detach().double().sum()) for weight in trainer.model.parameters()),
        "steps": trainer.state.global_step,
        "stopped": collection.stopped,
        "labels": [row["online/labels"] for row in online_logs(trainer)],
    }


class Stopping(Slow):
    """Gives all labels of the first look after a while, and after more of them pulls the cord."""

    def collect(self):
        self.allowed = 100 if self.looks > 20 else 3
        self.stop = "two ranks are enough" if self.looks > 24 else None
        return super().collect()


results = {"whole": gather_object([run("whole", Slow())]), "stopped": gather_object([run("stopped", Stopping())])}
results["wanted"] = [SCHEDULE.requested_before(n) for n in range(0, 24, 4)]
if PartialState().is_main_process:
    (folder / "result.json").write_text(json.dumps(results))
end_processes(PartialState())
