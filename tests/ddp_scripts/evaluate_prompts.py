"""Evaluate on `rows` prompts in two processes and write what the reward function was asked beside the metrics.

evaluate_prompts.py FOLDER ROWS, with the models FOLDER/policy and FOLDER/reference
"""

import json
import sys

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from ppo_runs import PROMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ziegler.experiments.recipe import end_processes
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.tasks import Task

folder, rows = sys.argv[1], int(sys.argv[2])
asked = []  # one list of `(number, score)` per batch, the reference's batches first


def letter_e(prompts, completions, number, **columns):
    scores = [float(text.count("e")) for text in completions]
    asked.append(list(zip(number, scores, strict=True)))
    return scores


def power(prompts, completions, number, **columns):
    """Sums to 2^rows - 1 only if every prompt is counted once."""
    return [2.0**n for n in number]


args = ZieglerPPOConfig(
    f"{folder}/run", per_device_train_batch_size=2, per_device_eval_batch_size=4, max_steps=1, report_to="none",
    use_cpu=True, disable_tqdm=True, reward_weights=[1.0, 0.0], ddp_backend="gloo",
)  # fmt: skip
assert args.world_size == 2, f"{args.world_size} processes"
data = Dataset.from_dict({"prompt": [PROMPTS[i % 4] for i in range(rows)], "number": list(range(rows))})
trainer = ZieglerPPOTrainer(
    args,
    AutoTokenizer.from_pretrained(f"{folder}/policy"),
    AutoModelForCausalLM.from_pretrained(f"{folder}/policy"),
    ref_model=AutoModelForCausalLM.from_pretrained(f"{folder}/reference"),
    reward_model=[letter_e, power],
    train_dataset=data,
    eval_dataset=data,
    task=Task("t", 6),
)
metrics = trainer.evaluate()
ranks = gather_object([asked])  # [rank][batch]
batches = len(asked) // 2
in_order = [
    ("reference" if batch < batches else "policy", number, score)
    for batch in range(2 * batches)
    for rank in range(2)
    for number, score in ranks[rank][batch]
]
again = trainer.evaluate()["eval_win_rate"]
table = trainer.generate_completions()
if args.process_index == 0:
    with open(f"{folder}/result.json", "w") as file:
        json.dump({"asked": in_order, "metrics": metrics, "again": again, "table": list(table["query"])}, file)
end_processes(PartialState())
