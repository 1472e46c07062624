"""Kills a PPO run with SIGKILL in the middle of an update, resumes it, and compares it with an uninterrupted one.

    python tests/kill_and_resume.py --num_processes 2

Prints the compared files and exits with 0 if policy, value head, beta, statistics and optimiser are equal bit for bit.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from launches import run_python, several_processes
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, TrainerCallback

from trl_ziegler import Task, ZieglerPPOConfig, ZieglerPPOTrainer
from trl_ziegler.experiments.laptop.tiny_model import build_tokenizer, lm_config
from trl_ziegler.experiments.recipe import end_processes

UPDATES, KILLED_IN_UPDATE = 4, 3
EPOCHS = 2
PROMPTS = ["The old house was warm.", "She found the garden.", "He saw a bright room.", "They were late again."] * 4
COMPARED = ("final/model.safetensors", "final/value_head.safetensors")


class KillInTheMiddle(TrainerCallback):
    """SIGKILL to the last process after the first optimiser step of an update."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == (KILLED_IN_UPDATE - 1) * EPOCHS + 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def letter_e(prompts, completions, **columns):
    """The reward: how often the letter e occurs."""
    return [float(text.count("e")) for text in completions]


def work(folder: Path, kill: bool, num_processes: int) -> None:
    """One process of the run: from the newest checkpoint if there is one."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(PROMPTS, vocab_size=300)
    config = ZieglerPPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8 // num_processes,
        num_ppo_epochs=EPOCHS,
        max_steps=UPDATES,
        learning_rate=1e-2,
        kl_target=0.1,
        kl_horizon=100,
        whiten_rewards=True,
        save_steps=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    assert config.world_size == num_processes, f"{config.world_size} processes instead of {num_processes}"
    trainer = ZieglerPPOTrainer(
        config,
        tokenizer,
        GPT2LMHeadModel(lm_config(tokenizer, n_embd=32)),
        reward_model=letter_e,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        callbacks=[KillInTheMiddle()] if kill else [],
        task=Task("demo", response_length=8),
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)
    trainer.save_model(str(folder / "final"))
    if trainer.is_world_process_zero():
        state = {"beta": trainer.kl_controller.value, "log": trainer.state.log_history[:UPDATES]}
        (folder / "final" / "state.json").write_text(json.dumps(state))
    end_processes(PartialState())


def run(folder: Path, kill: bool, num_processes: int) -> int:
    """Start the run as a user would, and return its exit status."""
    launcher = several_processes(num_processes) if num_processes > 1 else []
    options = ["--work", str(folder), "--num_processes", str(num_processes), *(["--kill"] if kill else [])]
    status, output = run_python(*launcher, os.path.abspath(__file__), *options)
    if status != 0 and not kill:
        print(output)
    return status


def compare(whole: Path, resumed: Path) -> bool:
    """Whether both runs ended alike, printing each file."""
    equal = True
    for name in COMPARED:
        ours, theirs = load_file(whole / name), load_file(resumed / name)
        same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        print(f"{name}: {len(ours)} tensors {'equal' if same else 'DIFFER'}")
        equal &= same
    states = [json.loads((folder / "final" / "state.json").read_text()) for folder in (whole, resumed)]
    same = states[0] == states[1]
    print(f"beta and the statistics of {UPDATES} updates: {'equal' if same else 'DIFFER'}")
    return equal and same


def main() -> int:
    """Three runs: whole, killed, resumed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work, args.kill, args.num_processes)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        if run(whole, kill=False, num_processes=args.num_processes) != 0:
            return 1
        status = run(killed, kill=True, num_processes=args.num_processes)
        newest = max(killed.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
        print(f"Killed in update {KILLED_IN_UPDATE} of {UPDATES} (exit status {status}), resuming from {newest}")
        if status == 0 or (killed / "final").exists():
            print("The run was not killed.")
            return 1
        if run(killed, kill=False, num_processes=args.num_processes) != 0:
            return 1
        return 0 if compare(whole, killed) else 1


if __name__ == "__main__":
    sys.exit(main())
