"""Best-of-4 reward training with one copy of the prompt against four: steps per second, losses, peak memory.

    python -m tests.benchmarks.reward_speed --shapes 500+4x75 64+4x24

Both train the same random GPT-2 on the same records, in alternation; a step is collation, forward and backward pass
and the optimizer's step. After a warm-up the medians over `--repeats` rounds and the smallest and largest ratio of a
round are printed. Peak memory is what two steps take above the finished trainer, each in a process of its own:
resident memory on a CPU (read from /proc), allocated memory on a GPU.
"""

import argparse
import copy
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForSequenceClassification, GPT2Config, PreTrainedTokenizerFast

from trl_ziegler.reward_model import as_reward_model
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer

from .memory import in_own_process, resident

VOCABULARY = 1024
MODES = {"shared": True, "copies": False}


class Shape(NamedTuple):
    """Tokens of a prompt, completions of a record, tokens of a completion."""

    prompt: int
    completions: int
    completion: int

    def __str__(self) -> str:
        return f"{self.prompt} + {self.completions} x {self.completion}"


class Size(NamedTuple):
    """Of the model and of a batch."""

    layers: int
    width: int
    records: int


def parse_shape(text: str) -> Shape:
    """`500+4x75` as a `Shape`."""
    match = re.fullmatch(r"(\d+)\+(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write 500+4x75")
    return Shape(*map(int, match.groups()))


def make_records(shape: Shape, count: int) -> Dataset:
    """Random records; no completion begins as another does, or they would share more than the prompt."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(shape.completions, VOCABULARY, (length,), generator=generator).tolist()

    completions = [[[k, *ids(shape.completion - 1)] for k in range(shape.completions)] for _ in range(count)]
    labels = [i % shape.completions for i in range(count)]
    prompts = [ids(shape.prompt) for _ in range(count)]
    return Dataset.from_dict({"prompt_ids": prompts, "completion_ids": completions, "label": labels})


def make_trainers(shape: Shape, size: Size, folder: str) -> dict[str, BestOfKRewardTrainer]:
    """One trainer per mode, with equal models."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=size.width, n_layer=size.layers, n_head=size.width // 64, num_labels=1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = as_reward_model(AutoModelForSequenceClassification.from_config(config), fresh_head=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<eos>")
    trainers = {}
    for mode, shared in MODES.items():
        args = BestOfKRewardConfig(
            output_dir=str(Path(folder, mode)), shared_prefix=shared, report_to="none", optimizer="tf_adam",
            use_cpu=not torch.accelerator.is_available(), disable_tqdm=True, learning_rate=1e-5,
        )  # fmt: skip
        trainers[mode] = BestOfKRewardTrainer(
            copy.deepcopy(model), args, train_dataset=make_records(shape, size.records), processing_class=tokenizer
        )
        trainers[mode].create_optimizer()
    return trainers


def step(trainer: BestOfKRewardTrainer) -> tuple[float, float]:
    """Seconds and loss of one step on all records of the trainer."""
    records = list(trainer.train_dataset)
    start = time.perf_counter()
    batch = {key: tensor.to(trainer.args.device) for key, tensor in trainer.data_collator(records).items()}
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss.item()


def peak_memory(mode: str, shape: Shape, size: Size, threads: int) -> int:
    """Bytes that two steps take above the finished trainer."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainers(shape, size, folder)[mode]
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            step(trainer), step(trainer)
            return torch.cuda.max_memory_allocated() - before
        before = resident("VmRSS")
        step(trainer), step(trainer)
        return resident("VmHWM") - before


def measure(shape: Shape, size: Size, repeats: int, warm_up: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and loss of each step after the warm-up, by mode."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = make_trainers(shape, size, folder)
        rounds = [{mode: step(trainers[mode]) for mode in MODES} for _ in range(warm_up + repeats)]
    return {mode: [each[mode] for each in rounds[warm_up:]] for mode in MODES}


def report(shape: Shape, steps: dict[str, list[tuple[float, float]]], peaks: dict[str, int]) -> None:
    """Print one shape's lines."""
    seconds = {mode: [each[0] for each in steps[mode]] for mode in MODES}
    medians = {mode: statistics.median(values) for mode, values in seconds.items()}
    ratios = [slow / fast for fast, slow in zip(seconds["shared"], seconds["copies"], strict=True)]
    losses = max(abs(a[1] - b[1]) for a, b in zip(steps["shared"], steps["copies"], strict=True))
    for mode in MODES:
        print(f"{shape}  {mode}: {1 / medians[mode]:.3f} steps/s, {peaks[mode] / 2**20:.0f} MiB")
    print(
        f"{shape}  {medians['copies'] / medians['shared']:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory {peaks['shared'] / peaks['copies']:.2f} x, losses differ by at most {losses:.1e}"
    )


def main() -> None:
    """Measure every shape in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[Shape(500, 4, 75), Shape(64, 4, 24)])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768, help="A multiple of 64.")
    parser.add_argument("--records", type=int, default=1, help="Records of a batch.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = Size(args.layers, args.width, args.records)
    print(f"GPT-2 of {size.layers} layers, width {size.width}, {size.records} records a step, {args.threads} threads")
    for shape in args.shapes:
        steps = measure(shape, size, args.repeats, args.warm_up)
        report(shape, steps, {mode: in_own_process(peak_memory, mode, shape, size, args.threads) for mode in MODES})


if __name__ == "__main__":
    main()
