"""Sampling with a growing cache, with one of fixed size, and with compiled steps (`cache_implementation="static"`).

    python -m tests.benchmarks.sampling_speed --context 16 --response 18 --rows 64 256 --layers 2 --width 64

A random GPT-2 samples the same rollout with each; they alternate, in one process. Compilation and the first rollout
are reported by themselves. On a GPU the seconds are those of the clock; on a CPU those of the processor (so other jobs
on the machine count little), the compiler's included. Printed are medians and the ratio to the growing cache, with
the smallest and largest of a round. Fixed size without compilation takes the compiled path with its steps as they are.
"""

import argparse
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.compiled_sampling import CompiledSteps
from trl_ziegler.fast_layers import use_fast_layers
from trl_ziegler.sampling import sample

from .ppo_speed import Setup, Shape, make_model


class FixedSteps(CompiledSteps):
    """The same rooms and steps, not compiled."""

    def __init__(self, model: ActorCritic) -> None:
        super().__init__(model)
        self._step = self._run


def seconds() -> float:
    """Of the clock, with the GPU's work done; or of the processor, with those of the processes it started."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def rollout(model: ActorCritic, compiled: CompiledSteps | None, args: argparse.Namespace, rows: int) -> float:
    """Seconds of sampling `rows` responses."""
    device = model.device
    queries = rows // args.samples
    ids = torch.randint(1, args.vocabulary, (queries, args.context), device=device)
    mask = (torch.arange(args.context, device=device) >= torch.arange(queries, device=device)[:, None] % 8).long()
    began = seconds()
    with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
        sample(
            model, ids, mask, response_length=args.response, temperature=0.7, samples_per_query=args.samples,
            generator=torch.Generator(device).manual_seed(0), compiled=compiled,
        )  # fmt: skip
    return seconds() - began


def measure(args: argparse.Namespace, rows: int) -> None:
    """Print the lines of one batch size."""
    shape = Shape(args.context, args.response, args.samples)
    setup = Setup(args.layers, args.width, args.vocabulary, rows, rows, 1, 1, args.threads, args.dtype)
    model = ActorCritic(make_model(AutoModelForCausalLM, shape, setup, 0)).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    use_fast_layers(model.policy)
    ways = {"growing": None, "fixed": FixedSteps(model), "compiled": CompiledSteps(model)}
    first = {name: rollout(model, way, args, rows) for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            times[name].append(rollout(model, way, args, rows))
    for name, each in times.items():
        ratios = [ours / growing for ours, growing in zip(each, times["growing"], strict=True)]
        print(
            f"{shape}, {rows} rows  {name}: {statistics.median(each):.3f} s a rollout, first {first[name]:.1f} s, "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the growing cache's",
            flush=True,
        )


def main() -> None:
    """Measure every batch size in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=16)
    parser.add_argument("--response", type=int, default=18)
    parser.add_argument("--samples", type=int, default=1, help="Responses to a context.")
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 256], help="Responses sampled at a time.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help="A multiple of 64.")
    parser.add_argument("--vocabulary", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for rows in args.rows:
        measure(args, rows)


if __name__ == "__main__":
    main()
