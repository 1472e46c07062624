"""Episodes per second and peak memory of PPO: stock TRL's trainer against ours, on the same model and prompts.

    python -m tests.benchmarks.ppo_speed --shapes 64+24 500+75 500+75x4

A shape is query tokens + response tokens, with `xK` for K responses to each query (stock gets each query K times).
Both train the same random GPT-2 with a reward model of the same size, the same batches, epochs and micro-batches;
stock has its separate value network, ours the paper's head on the trunk. Runs alternate; the first update of each is
the warm-up, the others are timed from log to log. Printed are medians over all timed updates, the smallest and
largest ratio of a pair of runs, tokens per second, and the share of the machine's matrix multiplication rate that the
useful arithmetic reaches (`flops_per_episode` counts it). Peak memory is what a run takes above the imports, resident
on a CPU, allocated on a GPU, each in a process of its own; of several `--processes` that of the first.
"""

import argparse
import re
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    GPT2Config,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from trl_ziegler._compat import PPOConfig, PPOTrainer
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.tasks import Task

from .memory import in_own_process, in_ranks, resident


class Shape(NamedTuple):
    """Tokens of a query and of a response, and responses to each query."""

    query: int
    response: int
    samples: int

    def __str__(self) -> str:
        return f"{self.query}+{self.response}" + (f"x{self.samples}" if self.samples > 1 else "")


class Setup(NamedTuple):
    """Of the model and of an update; `batch` and `micro` count episodes, `threads` those of a process."""

    layers: int
    width: int
    vocabulary: int
    batch: int
    micro: int
    epochs: int
    updates: int
    threads: int
    dtype: str
    processes: int = 1


def parse_shape(text: str) -> Shape:
    """`500+75x4` as a `Shape`."""
    match = re.fullmatch(r"(\d+)\+(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write 500+75 or 500+75x4")
    return Shape(int(match[1]), int(match[2]), int(match[3] or 1))


class UpdateClock(TrainerCallback):
    """Seconds of each update but the first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if "objective/kl" in (logs or {}):
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def make_model(kind: Any, shape: Shape, setup: Setup, seed: int) -> Any:
    """A random GPT-2 for `kind`, one of the `AutoModelFor...` classes."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=setup.vocabulary, n_embd=setup.width, n_layer=setup.layers, n_head=max(1, setup.width // 64),
        n_positions=1024, num_labels=1, bos_token_id=0, eos_token_id=0, pad_token_id=setup.vocabulary - 1,
    )  # fmt: skip
    return kind.from_config(config)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word for each id; the last is PAD, which stock needs."""
    words = {f"w{i}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w0", pad_token=f"w{vocabulary - 1}", padding_side="left"
    )


def queries(shape: Shape, setup: Setup) -> Dataset:
    """As many random queries as one update needs for each update, each once."""
    generator = torch.Generator().manual_seed(0)
    count = setup.batch * setup.updates // shape.samples
    ids = torch.randint(1, setup.vocabulary - 1, (count, shape.query), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()})


def options(shape: Shape, setup: Setup, folder: str) -> dict[str, Any]:
    """What both configs get."""
    return {
        "output_dir": folder, "per_device_train_batch_size": setup.micro,
        "gradient_accumulation_steps": setup.batch // setup.micro // setup.processes, "num_ppo_epochs": setup.epochs,
        "num_mini_batches": 1, "total_episodes": setup.batch * setup.updates, "response_length": shape.response,
        "temperature": 0.7, "learning_rate": 1e-5, "local_rollout_forward_batch_size": setup.batch,
        "num_sample_generations": 0, "save_strategy": "no", "report_to": "none", "logging_steps": 1,
        "use_cpu": not torch.accelerator.is_available(), "disable_tqdm": True, "bf16": setup.dtype == "bf16",
    }  # fmt: skip


def make_ours(shape: Shape, setup: Setup, folder: str) -> ZieglerPPOTrainer:
    """The trainer of this package."""
    common = options(shape, setup, folder)
    rule = {"response_length": common.pop("response_length"), "temperature": common.pop("temperature")}
    return ZieglerPPOTrainer(
        ZieglerPPOConfig(**common, optimizer="hf", num_samples_per_query=shape.samples),
        make_tokenizer(setup.vocabulary),
        make_model(AutoModelForCausalLM, shape, setup, 0),
        reward_model=make_model(AutoModelForSequenceClassification, shape, setup, 1),
        train_dataset=queries(shape, setup),
        task=Task("speed", **rule),
    )


def make_stock(shape: Shape, setup: Setup, folder: str) -> PPOTrainer:
    """TRL's own; its rows are shuffled, so the K copies of a query need not lie in one batch."""
    tokenizer, data = make_tokenizer(setup.vocabulary), queries(shape, setup)
    copies = data.select([i for i in range(len(data)) for _ in range(shape.samples)])
    return PPOTrainer(
        PPOConfig(**options(shape, setup, folder), gradient_checkpointing=False),
        tokenizer,
        make_model(AutoModelForCausalLM, shape, setup, 0),
        ref_model=make_model(AutoModelForCausalLM, shape, setup, 0),
        reward_model=make_model(AutoModelForSequenceClassification, shape, setup, 1),
        value_model=make_model(AutoModelForSequenceClassification, shape, setup, 2),
        train_dataset=copies,
        eval_dataset=data.select([0]),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


MAKERS = {"stock": make_stock, "ours": make_ours}


class Run(NamedTuple):
    """Seconds of each timed update, and the bytes that the whole run took above what the imports take."""

    seconds: list[float]
    peak: int


def run(name: str, shape: Shape, setup: Setup) -> Run:
    """One run, in a process that has done nothing else."""
    torch.set_num_threads(setup.threads)
    before = resident("VmRSS")
    clock = UpdateClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MAKERS[name](shape, setup, folder)
        trainer.add_callback(clock)
        trainer.train()
    on_gpu = torch.cuda.is_available()
    return Run(clock.seconds, torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM") - before)


def flops_per_token(setup: Setup, keys: float) -> float:
    """Multiplications and additions of the layers for one token that reads `keys` others, forward."""
    return setup.layers * (24 * setup.width**2 + 4 * setup.width * keys)


def flops_per_episode(shape: Shape, setup: Setup) -> float:
    """Floating-point operations that an episode of the method needs: the paper's architecture, one copy of a prompt.

    Forward passes of sampling, reference, reward model and (three times for forward and backward) each epoch; logits
    at response positions only; a prompt once for its K responses.
    """
    prompt, response = shape.query / shape.samples, shape.response
    layers = prompt * flops_per_token(setup, shape.query / 2)
    layers += response * flops_per_token(setup, shape.query + response / 2)
    logits = 2 * setup.width * setup.vocabulary * response
    return (3 + 3 * setup.epochs) * layers + (2 + 3 * setup.epochs) * logits


def matmul_rate(setup: Setup) -> float:
    """Measured floating-point operations per second of square matrix products."""
    torch.set_num_threads(setup.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 8192 if device == "cuda" else 1536
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if setup.dtype == "bf16" else torch.float32)
    rates = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)


def measure(shape: Shape, setup: Setup, repeats: int, names: list[str]) -> dict[str, list[Run]]:
    """The runs of each trainer, made in alternation."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            runs[name].append(in_ranks(setup.processes, run, name, shape, setup))
    return runs


def report(shape: Shape, setup: Setup, runs: dict[str, list[Run]]) -> None:
    """Print one shape's lines."""
    medians = {name: statistics.median(s for one in each for s in one.seconds) for name, each in runs.items()}
    peaks = {name: max(one.peak for one in each) for name, each in runs.items()}
    tokens, needed = shape.query + shape.response, flops_per_episode(shape, setup)
    rate = setup.processes * in_own_process(matmul_rate, setup)
    print(f"{shape}  {needed / 1e9:.1f} GFLOP an episode, matrix products run at {rate / 1e9:.0f} GFLOP/s")
    for name, median in medians.items():
        episodes = setup.batch / median
        print(
            f"{shape}  {name}: {episodes:.2f} episodes/s, {episodes * tokens:.0f} tokens/s, "
            f"{episodes * needed / rate:.0%} of the rate, {peaks[name] / 2**20:.0f} MiB"
        )
    if set(runs) == set(MAKERS):
        each = {name: [statistics.median(one.seconds) for one in runs[name]] for name in MAKERS}
        ratios = [stock / ours for stock, ours in zip(each["stock"], each["ours"], strict=True)]
        print(
            f"{shape}  {medians['stock'] / medians['ours']:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"memory {peaks['ours'] / peaks['stock']:.2f} x",
            flush=True,
        )


def main() -> None:
    """Measure every shape in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [Shape(64, 24, 1), Shape(500, 75, 1), Shape(500, 75, 4)]
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=shapes)
    parser.add_argument("--trainers", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="A multiple of 64.")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--batch", type=int, default=16, help="Episodes of an update.")
    parser.add_argument("--micro", type=int, default=8, help="Episodes of a forward and backward pass.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--updates", type=int, default=3, help="Of each run; the first is the warm-up.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each trainer.")
    parser.add_argument("--threads", type=int, default=2, help="Of each process.")
    parser.add_argument("--processes", type=int, default=1, help="Ranks that share an update's episodes.")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    names = Setup._fields
    setup = Setup(**{name: getattr(args, name) for name in names})
    print(
        f"GPT-2 of {setup.layers} layers, width {setup.width}, vocabulary {setup.vocabulary}; {setup.batch} episodes "
        f"an update in micro-batches of {setup.micro}, {setup.epochs} epochs; "
        f"{setup.processes} processes of {setup.threads} threads, {setup.dtype}"
    )
    for shape in args.shapes:
        report(shape, setup, measure(shape, setup, args.repeats, args.trainers))


if __name__ == "__main__":
    main()
