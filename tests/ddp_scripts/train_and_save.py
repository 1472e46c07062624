"""Two updates in two processes, a checkpoint after each, and the model saved at the end; then resumed from the first.

train_and_save.py FOLDER full|lora, with the model FOLDER/policy
"""

import json
import sys

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig
from ppo_parts import favour, prompts
from ppo_runs import training_logs
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ziegler.experiments.recipe import end_processes
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer

folder, kind = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/policy")
STOP = tokenizer.eos_token_id


def letters(prompts, completions, **columns):
    """The number of e, and 3 more on the second process, so that the ranks' means differ."""
    return [text.count("e") + 3.0 * args.process_index for text in completions]


args = ZieglerPPOConfig(
    f"{folder}/run", per_device_train_batch_size=4, num_ppo_epochs=2, max_steps=2, learning_rate=1e-2,
    logging_steps=1, save_strategy="steps", save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
    ddp_backend="gloo", stop_token="eos", response_length=6, kl_coef=0.0,
)  # fmt: skip
assert args.world_size == 2, f"{args.world_size} processes"


def build() -> ZieglerPPOTrainer:
    model = favour(AutoModelForCausalLM.from_pretrained(f"{folder}/policy"), STOP, 4.0)
    return ZieglerPPOTrainer(
        args,
        tokenizer,
        model,
        reward_model=letters,
        train_dataset=prompts(16),
        peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True) if kind == "lora" else None,
    )


def weights(trainer: ZieglerPPOTrainer) -> float:
    return sum(float(weight.detach().double().sum()) for weight in trainer.model.parameters())


trainer = build()
seen, compute_loss = [], trainer.compute_loss


def look(model, inputs, **kwargs):
    seen.append(inputs)
    return compute_loss(model, inputs, **kwargs)


trainer.compute_loss = look
trainer.train()
trainer.save_model(f"{folder}/saved")

first = seen[0]
local = (float(first.advantages[first.rollout.mask].sum()), int(first.rollout.mask.sum()))
ended = (int((first.rollout.responses == STOP).any(1).sum()), len(first.rollout))
gathered = gather_object([(local, ended, weights(trainer))])
resumed = build()
resumed.train(resume_from_checkpoint=f"{folder}/run/checkpoint-2")
if args.process_index == 0:
    sums, counts = zip(*(part[0] for part in gathered), strict=True)
    finished, episodes = zip(*(part[1] for part in gathered), strict=True)
    logs = training_logs(trainer)
    result = {
        "weights_of_ranks": [part[2] for part in gathered],
        "resumed": weights(resumed),
        "advantages": sum(sums) / sum(counts),
        "advantages_of_rank": sums[0] / counts[0],
        "valid_share": logs[0]["objective/valid_share"],
        "valid_share_counted": sum(finished) / sum(episodes),
        "kl": [row["objective/kl"] for row in logs],
    }
    with open(f"{folder}/result.json", "w") as file:
        json.dump(result, file)
end_processes(PartialState())
