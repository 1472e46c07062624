"""PPO with the policy in shards (FSDP 2) over two CPU processes against the same run under DDP.

    accelerate launch --config_file recipes/accelerate/two_cpu_processes.yaml tests/sharded_ppo.py FOLDER [CASE ...]

accelerate shards on accelerators only; `launched_with_fsdp` has it do on a CPU what it does there.
"""

import contextlib
import json
import math
import os
import runpy
import sys
import time
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from ppo_parts import favour, prompts
from ppo_runs import SMALL_RUN, letter_e, training_logs
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)

from trl_ziegler import ActorCritic, Task, ZieglerPPOConfig, ZieglerPPOTrainer, as_reward_model
from trl_ziegler.experiments.laptop.tiny_model import build_tokenizer
from trl_ziegler.sharding import is_sharded, local_part, reshard

# What `accelerate launch` sets for recipes/accelerate/fsdp.yaml; a test of the launch files holds it to that.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
TOKENIZER = build_tokenizer(["the cat was a dog saw it. she they found the old house in the garden and."] * 4, 300)
TASK = Task("t", 8, regime="eos", temperature=0.7, truncate_token=".", truncate_after=1, penalty=-1.0)
STOP = TOKENIZER.encode(".")[0]
ROOT = Path(__file__).parents[1]
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


@contextlib.contextmanager
def launched_with_fsdp(**changed):
    """Trainers made in here are sharded, on a CPU as elsewhere."""
    plain = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    before = dict(os.environ)
    AcceleratorState._reset_state(reset_partial_state=True)
    AcceleratorState.__init__ = init
    os.environ.update({**FSDP, **changed})
    try:
        yield
    finally:
        AcceleratorState.__init__ = plain
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)


def policy(kind="gpt2", by=4.0):
    """A random model with a liking for the stop token."""
    torch.manual_seed(0)
    size = len(TOKENIZER)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        return favour(GPT2LMHeadModel(config), STOP, by)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return favour(LlamaForCausalLM(config), STOP, by)


def classifier():
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=1, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return as_reward_model(AutoModelForSequenceClassification.from_config(config), fresh_head=True)


ARGUMENTS = {"model", "value_model", "peft_config", "reward_model", "pretraining_dataset", "eval_dataset", "task"}


def make(folder, **given):
    arguments = {"model": policy(), "reward_model": letter_e, "task": TASK}
    arguments |= {name: value for name, value in given.items() if name in ARGUMENTS}
    settings = {name: value for name, value in given.items() if name not in ARGUMENTS}
    config = ZieglerPPOConfig(
        **{
            **SMALL_RUN,
            "output_dir": str(FOLDER / folder),
            "max_steps": 2,
            "num_mini_batches": 2,
            "gradient_accumulation_steps": 2,
            "optimizer": "tf_adam",
            "max_grad_norm": 1.0,
            "kl_target": 0.1,
            "kl_horizon": 100,
            "whiten_rewards": True,
            "ddp_timeout": 30,  # seconds after which a process that waits alone fails
            **settings,
        }
    )
    assert config.world_size == 2
    return ZieglerPPOTrainer(config, TOKENIZER, train_dataset=prompts(32), **arguments)


def whole(trainer):
    """The weights, put together, on every process."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = model.state_dict()
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in state.items()}


def close(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def same_logs(ours, theirs, tolerance=1e-3):
    """The same rows up to rounding, and the time it took."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys(), a.keys() ^ b.keys()
        for name in a:
            if isinstance(a[name], float) and "runtime" not in name and "per_second" not in name:
                assert math.isclose(a[name], b[name], rel_tol=tolerance, abs_tol=tolerance) or (
                    math.isnan(a[name]) and math.isnan(b[name])
                ), (name, a[name], b[name])


def both(name, arguments, **fsdp):
    """`arguments()` run under DDP and in shards, which end alike; the trainers."""
    plain = make(f"{name}-ddp", **arguments())
    steps = count_steps(plain)
    plain.train()
    assert not plain.is_fsdp_enabled
    with launched_with_fsdp(**fsdp):
        sharded = make(f"{name}-fsdp", **arguments())
        sharded.train()
        networks = filter(None, (sharded.model.policy, sharded.model.value_model))
        blocks = sum(network.config.num_hidden_layers for network in networks)
        assert sum(map(is_sharded, sharded.model.modules())) > blocks  # each on its own, and what is outside
        close(whole(sharded), whole(plain), rtol=1e-4, atol=1e-5)
        same_logs(sharded.state.log_history[:-1], plain.state.log_history[:-1])
    return plain, sharded, steps


def count_steps(trainer):
    """The lengths of a whole trainer's samplings, filled while it trains."""
    model, plain, lengths = trainer.model, trainer.model.step, []

    def step(inputs, keep, cache=None):
        if inputs["attention_mask"].shape[1] == inputs["input_ids"].shape[1]:  # nothing in the cache yet
            lengths.append(0)
        lengths[-1] += 1
        return plain(inputs, keep, cache)

    model.step = step
    return lengths


def of_both(value):
    """The values of the two processes."""
    values = [None, None]
    dist.all_gather_object(values, value)
    return values


def case_ends():
    """Sampling ends at different steps in the two processes, in chunks of the rollout."""
    _, _, lengths = both("ends", lambda: {"local_rollout_forward_batch_size": 2, "max_steps": 3})
    first, second = of_both(lengths)
    assert len(first) == len(second) > 6
    assert {a > b for a, b in zip(first, second, strict=True) if a != b} == {True, False}, (first, second)


def case_saved():
    """What is saved is what DDP saves, and a stopped run in shards resumes to the last bit."""
    arguments = {"save_strategy": "steps", "save_steps": 1}
    _, sharded, _ = both("saved", lambda: dict(arguments))
    dist.barrier()
    for name in ("model.safetensors", "value_head.safetensors"):
        ours, theirs = (load_file(FOLDER / run / "checkpoint-8" / name) for run in ("saved-fsdp", "saved-ddp"))
        close(ours, theirs, rtol=1e-4, atol=1e-5)
    with launched_with_fsdp():
        resumed = make("resumed-fsdp", **arguments)
        resumed.train(resume_from_checkpoint=str(FOLDER / "saved-fsdp" / "checkpoint-4"))
        final = whole(resumed)
        close(final, whole(sharded), rtol=0, atol=0)
        same_logs(resumed.state.log_history[:-1], sharded.state.log_history[:-1], 0)
        assert resumed.kl_controller.value == sharded.kl_controller.value != 0.05
        resumed.save_model()
    dist.barrier()
    loaded = ActorCritic.from_pretrained(FOLDER / "resumed-fsdp")
    close(loaded.state_dict(), final, rtol=0, atol=0)
    assert loaded.policy.config.architectures == ["GPT2LMHeadModel"]
    with raises(ValueError, "was written with FSDP, whose optimiser state is another"):
        make("refused", **arguments).train(resume_from_checkpoint=str(FOLDER / "saved-fsdp" / "checkpoint-4"))


def case_shards():
    """The same with accelerate's default, where the checkpoint holds the shards of model and optimiser."""
    arguments = {"save_strategy": "steps", "save_steps": 1}
    with launched_with_fsdp(FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT"):
        once = make("shards", **arguments)
        once.train()
        resumed = make("shards-resumed", **arguments)
        resumed.train(resume_from_checkpoint=str(FOLDER / "shards" / "checkpoint-4"))
        close(whole(resumed), whole(once), rtol=0, atol=0)
        once.save_model()
        dist.barrier()
        close(ActorCritic.from_pretrained(FOLDER / "shards").state_dict(), whole(once), rtol=0, atol=0)


def case_evaluation():
    """Held-out prompts that fill neither the last batch nor both processes; it ends, and says the same."""
    both(
        "evaluation",
        lambda: {
            "eval_dataset": prompts(7),
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_on_start": True,
            "per_device_eval_batch_size": 2,
            "num_sample_generations": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_objective/entropy",  # which falls: the best is the first
        },
    )


def adapters():
    return {
        "model": policy("llama"),
        "peft_config": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
        "eval_dataset": prompts(7),
        "eval_on_start": True,
        "per_device_eval_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
    }


def case_adapters():
    """The reference is the sharded policy with its adapters off; only the adapters are saved, and resumed from."""
    _, sharded, _ = both("adapters", adapters)
    before = {name: tensor for name, tensor in whole(sharded).items() if "lora_B" in name}
    assert before and all(tensor.any() for tensor in before.values())
    with launched_with_fsdp():
        resumed = make("adapters-resumed", **adapters())
        resumed.train(resume_from_checkpoint=str(FOLDER / "adapters-fsdp" / "checkpoint-4"))
        close(whole(resumed), whole(sharded), rtol=0, atol=0)


def case_adapters_kept():
    """Adapters train too where the blocks stay whole after a forward pass, of which the reference makes the first."""
    both(
        "adapters-kept",
        lambda: {**adapters(), "save_strategy": "no", "eval_dataset": prompts(4), "max_steps": 1},
        FSDP_RESHARD_AFTER_FORWARD="false",
    )


def case_value_network():
    """A value network beside the policy, several responses to a query, and the loss of pretraining text."""
    documents = Dataset.from_dict({"text": ["the cat was in the garden and they saw it. " * 3] * 6})
    arguments = {
        "num_ppo_epochs": 1,
        "num_samples_per_query": 2,
        "ptx_coef": 0.5,
        "ptx_length": 8,
        "ptx_batch_size": 2,
        "pretraining_dataset": documents,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    _, sharded, _ = both("values", lambda: {**arguments, "value_model": classifier()})
    with launched_with_fsdp():
        resumed = make("values-resumed", **arguments, value_model=classifier())
        resumed.train(resume_from_checkpoint=str(FOLDER / "values-fsdp" / "checkpoint-2"))
        close(whole(resumed), whole(sharded), rtol=0, atol=0)
        model, ids = resumed.model, torch.arange(1, 13).view(1, 12)
        with torch.no_grad():
            out = model(ids, torch.ones_like(ids), 4)
            reshard(model)  # each method puts together itself what it needs
            close({"": model.network_values(ids, torch.ones_like(ids), 4)}, {"": out.values})
            reshard(model)
            close({"": model.policy_logits(ids, torch.ones_like(ids), 4)}, {"": out.logits})


def case_bf16():
    """bfloat16: sampling, reference and training compute the same, and the weights are kept in float32."""
    with launched_with_fsdp():
        sharded = make("bf16", bf16=True)
        check, off = sharded._check_start, []

        def look(rollout, logprobs):
            off.append((logprobs - rollout.logprobs)[rollout.mask].abs().max().item())
            check(rollout, logprobs)

        sample = sharded._sample

        def without_autocast(*args):  # which training's pass is without; on a GPU layer norms would tell
            assert not torch.is_autocast_enabled("cpu")
            return sample(*args)

        sharded._check_start, sharded._sample = look, without_autocast
        sharded.train()
        assert max(off) < 2e-3, off
        assert {tensor.dtype for tensor in whole(sharded).values()} == {torch.float32}
        logs = training_logs(sharded)
        assert abs(logs[0]["objective/kl"]) < 1e-3 and all(math.isfinite(row["loss"]) for row in logs)


def case_checkpointing():
    """Activations recomputed in the backward pass, by transformers and by accelerate."""
    both("recomputed", lambda: {"max_steps": 1, "gradient_checkpointing": True})
    both("recomputed-by-fsdp", lambda: {"max_steps": 1}, FSDP_ACTIVATION_CHECKPOINTING="true")


def case_target_kl():
    """An update that ends early ends early in both processes."""
    _, sharded, _ = both("target", lambda: {"target_kl": 1e-3, "num_ppo_epochs": 4})
    assert min(row["policy/optimizer_steps"] for row in training_logs(sharded)) < 8


class Broken:
    """Loses the gradient of one response in the second process, whose loss stays finite."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, batch, logprobs, values):
        policy, value = self.plain(batch, logprobs, values)
        if dist.get_rank() == 1:
            first = batch.rollout.responses[:, 0] == self.token
            policy = policy + (first * (logprobs[:, 0] - logprobs[:, 0].detach()).clamp(min=0).sqrt()).sum()
        return policy, value


def case_gradient():
    """A gradient that one process spoils stops both; that process names the response."""
    with launched_with_fsdp():
        trainer = make("gradient", max_steps=1)
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        broken = trainer._losses = Broken(trainer._losses)
        collect = trainer._collect

        def remember(batch):
            rollout = collect(batch)
            broken.token = int(rollout.responses[1, 0])
            return rollout

        trainer._collect = remember
        said = "of the prompt" if dist.get_rank() == 1 else "is not finite, though that of every single response"
        with raises(FloatingPointError, said):
            trainer.train()
        trainer.model.zero_grad()
        reshard(trainer.model)
        close(whole(trainer), before, rtol=0, atol=0)
        trainer = make("spoiled", max_steps=1)
        trainer.add_callback(Spoil)
        trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, Spoil))
        with raises(FloatingPointError, "gradient of policy.transformer.wte.weight is not finite, though"):
            trainer.train()


class Spoil(TrainerCallback):
    """Loses the second process's part of a gradient, as a broken device would."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if dist.get_rank() == 1:
            local_part(model.policy.transformer.wte.weight.grad)[0, 0] = math.nan


def case_early():
    """Before `train` there are no shards to evaluate."""
    with launched_with_fsdp():
        trainer = make("early", eval_dataset=prompts(4))
        with raises(RuntimeError, "put in shards by `train`"):
            trainer.evaluate()


@contextlib.contextmanager
def raises(kind, message):
    try:
        yield
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def case_recipe():
    """`recipes/ppo.py` as a user runs it, in bfloat16, and once more: it goes on from its checkpoint."""
    start, output, rows = FOLDER / "start", FOLDER / "recipe", FOLDER / "prompts.jsonl"
    if dist.get_rank() == 0:
        policy().save_pretrained(start)
        TOKENIZER.save_pretrained(start)
        prompts(16).to_json(rows)
    dist.barrier()
    options = {"model_name_or_path": start, "reward": "ppo_runs:letter_e", "dataset_name": rows, "output_dir": output}
    options |= {"response_length": 8, "stop_token": "eos", "per_device_train_batch_size": 4, "save_steps": 1}
    options |= {"bf16": True, "report_to": "none", "cpu_threads": 1, "ddp_timeout": 30}
    for updates in (1, 2):
        command = arguments_of_the_command({**options, "max_steps": updates})
        # The processes are this script's, which has not come to its end.
        with launched_with_fsdp(), command, mock.patch("trl_ziegler.experiments.own_data.end_processes"):
            runpy.run_path(str(ROOT / "recipes" / "ppo.py"), run_name="__main__")
    dist.barrier()
    loaded = ActorCritic.from_pretrained(output)
    assert loaded.policy.dtype == torch.float32 and loaded.value_head.weight.any()
    assert json.loads((output / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8


@contextlib.contextmanager
def arguments_of_the_command(options):
    before = sys.argv
    sys.argv = ["recipes/ppo.py", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
    yield
    sys.argv = before


CASES = {name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


if __name__ == "__main__":
    for chosen in sys.argv[2:] or CASES:
        start = time.perf_counter()
        CASES[chosen]()
        dist.barrier()
        print(f"{chosen}: as it should be ({time.perf_counter() - start:.1f} s)\n", end="", flush=True)
    dist.destroy_process_group()
