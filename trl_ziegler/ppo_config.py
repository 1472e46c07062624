"""`ZieglerPPOConfig`, and how its batch sizes divide one update."""

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, Literal

import torch
from accelerate.logging import get_logger
from transformers import TrainingArguments

from ._compat import PPOConfig
from .optim import check_tf_adam
from .presets import PAPER_POLICY, RELEASED_POLICY, Presets, Table
from .ranges import Range, check_counts, check_ranges

logger = get_logger(__name__)

DERIVED = (
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
)
REFUSED = {
    "kl_estimator": "the reward of the method is -beta log(pi/rho), which is 'k1'",
    "ds3_gather_for_generation": "DeepSpeed ZeRO-3 is not supported",
    "label_smoothing_factor": "there are no labels to smooth",
    "neftune_noise_alpha": "noise in the embeddings would make the sampled and the trained policy differ",
    "auto_find_batch_size": "the batch sizes define the update; lower `per_device_train_batch_size` and raise "
    "`gradient_accumulation_steps` by the same factor",
    "train_sampling_strategy": "queries come in a random order",
    "bf16_full_eval": "evaluation samples as training does; set `bf16`",
    "fp16": "its loss scaling leaves out the steps whose gradient overflows, which is where this trainer stops; set "
    "`bf16`, or neither",
    "fp16_full_eval": "evaluation samples as training does",
}


COUNTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_ppo_epochs",
    "num_mini_batches",
    "local_rollout_forward_batch_size",
    "num_samples_per_query",
    "response_length",
    "total_episodes",
    "ptx_batch_size",
    "ptx_length",
)
RANGES = {
    "learning_rate": Range(0),
    "temperature": Range(0, above=True),
    "gamma": Range(0, 1),
    "lam": Range(0, 1),
    "cliprange": Range(0, above=True),
    "cliprange_value": Range(0, above=True),
    "vf_coef": Range(0),
    "kl_coef": Range(0, why=": a negative one would reward leaving the reference"),
    "kl_target": Range(0, above=True),
    "kl_horizon": Range(0, above=True),
    "target_kl": Range(0, above=True),
    "ptx_coef": Range(0, why=": a negative one would unlearn the pretraining text"),
    "missing_eos_penalty": Range(0, why=": it is subtracted"),
}


@dataclass
class ZieglerPPOConfig(Presets, PPOConfig):
    r"""Configuration of [`ZieglerPPOTrainer`]: TRL's `PPOConfig` with the fields the paper needs.

    Batch sizes are TRL's: an update collects `per_device_train_batch_size * gradient_accumulation_steps` episodes per
    process and makes `num_ppo_epochs * num_mini_batches` optimiser steps on them. `logging_steps`, `save_steps`,
    `eval_steps` and `max_steps` count updates. `ZieglerPPOConfig.paper("sentiment")` and `.released_code(...)` have
    the method's own numbers ([`Presets`]).

    Parameters:
        kl_target (`float`, *optional*):
            Target of KL(pi, rho) in nats per response. `None` keeps `kl_coef` fixed (the paper's summarization
            runs); a value adapts it, starting from `kl_coef` (section 2.2; style runs: 6 in the released code).
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Episodes over which the adaptive coefficient can change by a factor of about 1.2 (released code: 10000).
        whiten_scope (`str`, *optional*, defaults to `"global"`):
            `"global"` whitens rewards and advantages over the minibatches of all processes together, so that a run
            does not depend on their number; `"rank"` over each process's own, as the released code does.
        value_init (`str`, *optional*, defaults to `"zero"`):
            With `value_model=None`: `"zero"` puts a zero-initialised head on the policy's trunk (the paper);
            `"reward"` starts a separate value network from the reward model (Stiennon et al. 2020, InstructGPT).
        reward_weights (`list[float]`, *optional*):
            One weight per reward function, 1.0 each if left out. A function of weight 0 is only logged.
        optimizer (`str`, *optional*, defaults to `"hf"`):
            `"hf"` uses `optim` and its arguments; `"tf_adam"` the reference's Adam, whose epsilon of 1e-5 sits
            outside the bias correction ([`TFAdam`]), with `learning_rate`, `adam_beta1` and `adam_beta2`.
        target_kl (`float`, *optional*):
            Ends an update before the step of a minibatch on which `policy/approxkl_avg`, half the mean squared
            log-ratio to the sampling policy in nats^2 per token, exceeds this. `None` (the paper) makes every step.
            It bounds one update; `kl_target` steers the distance to the reference over the run.
        ptx_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the language model's loss on `pretraining_dataset`, added to PPO's (PPO-ptx; InstructGPT: 27.8,
            from memory). Not the discount, which is `gamma`.
        ptx_batch_size (`int`, *optional*, defaults to `8`):
            Rows of pretraining text beside each micro-batch of each process.
        ptx_length (`int`, *optional*, defaults to `128`):
            Tokens of such a row.
        num_samples_per_query (`int`, *optional*, defaults to `1`):
            Responses sampled to each query of an update (K). Batch sizes go on counting episodes, so an update reads
            1/K as many queries. The responses to a query stay in one micro-batch, where the query is run once for all
            of them.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            With several samples per query, run the query once for all of them, exactly; a model that cannot be served
            this way is refused. `False` runs it once for each.
        cache_implementation (`str`, *optional*):
            `"static"` samples with a key-value cache of fixed size and compiled steps (`torch.compile`; CUDA graphs on
            a GPU), as in transformers and TRL's other trainers. `None` lets the cache grow and compiles nothing. A
            policy that cannot be served is refused; what it brings is measured in `docs/performance.md`.
        rollout_dir (`str`, *optional*):
            Folder that gets every rollout as JSON lines, one file per update and process.

    > [!NOTE]
    > These parameters have default values different from `PPOConfig`:
    > - `bf16`: `False`. The reference runs in float32, its steps of about 1e-7 are lost in bfloat16 weights, and TRL's
    >   default raises on a machine without a GPU.
    > - `gradient_checkpointing`: off (`None`). TRL's `True` costs a second forward pass that small models do not need;
    >   in newer releases of transformers the field is called `activation_checkpointing`.
    > - `dataloader_pin_memory`: off where there is no accelerator to copy to; torch would warn of it at every loader.
    """

    _paper: ClassVar[Table] = PAPER_POLICY
    _released_code: ClassVar[Table] = RELEASED_POLICY

    bf16: bool | None = field(default=False, metadata={"help": "Train under bfloat16 autocast."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "Target KL in nats per response; adapts kl_coef. None keeps kl_coef fixed."}
    )
    kl_horizon: int = field(default=10_000, metadata={"help": "Horizon of the adaptive kl_coef, in episodes."})
    whiten_scope: Literal["global", "rank"] = field(
        default="global", metadata={"help": "Whiten over the minibatches of all processes, or of each alone."}
    )
    value_init: Literal["zero", "reward"] = field(
        default="zero",
        metadata={"help": "Without value_model: zero head on the trunk, or a copy of the reward model."},
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function; 0 only logs it."}
    )
    optimizer: Literal["hf", "tf_adam"] = field(
        default="hf", metadata={"help": "'hf' follows `optim`; 'tf_adam' is the reference's Adam."}
    )
    target_kl: float | None = field(
        default=None, metadata={"help": "End an update before a step whose policy/approxkl_avg exceeds this."}
    )
    ptx_coef: float = field(default=0.0, metadata={"help": "Weight of the loss on pretraining text (PPO-ptx)."})
    ptx_batch_size: int = field(default=8, metadata={"help": "Rows of pretraining text beside each micro-batch."})
    ptx_length: int = field(default=128, metadata={"help": "Tokens of a row of pretraining text."})
    num_samples_per_query: int = field(default=1, metadata={"help": "Responses sampled to each query of an update."})
    shared_prefix: bool = field(
        default=True, metadata={"help": "Run a query once for all of its samples; False runs it once for each."}
    )
    cache_implementation: Literal["static"] | None = field(
        default=None, metadata={"help": "'static' samples with a cache of fixed size and compiled steps."}
    )
    rollout_dir: str | None = field(
        default=None, metadata={"help": "Write every rollout into this folder as JSON lines."}
    )

    def __post_init__(self) -> None:
        self._refuse_unread_fields()
        # Without it `Trainer` leaves each of several processes on CPUs to itself, and refuses `bf16` there.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        if self.n_gpu > 1:
            # `Trainer` would put the model's copies on them, which share none of what a rollout needs.
            logger.warning(f"1 of {self.n_gpu} GPUs is used; `accelerate launch` starts a process for each.")
            self._n_gpu = 1
        if self.ddp_find_unused_parameters is None:
            # Every parameter takes part; `Trainer`'s own choice for what is no `PreTrainedModel` is a search per step.
            self.ddp_find_unused_parameters = False
        # `PPOConfig` declares a field `world_size = None` that hides this property of `TrainingArguments`.
        self.world_size = TrainingArguments.world_size.fget(self)
        self._check_values()

    def _refuse_unread_fields(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in DERIVED and value is not None:
                raise ValueError(
                    f"`{item.name}` is {value} but follows from the other batch sizes; set "
                    "`per_device_train_batch_size`, `gradient_accumulation_steps` and `num_mini_batches`."
                )
            if item.name in REFUSED and item.default is not MISSING and value != item.default:
                raise ValueError(f"`{item.name}` is {value!r}, which this trainer does not use: {REFUSED[item.name]}.")

    def _check_values(self) -> None:
        check_counts(self, COUNTS)
        check_ranges(self, RANGES)
        if self.stop_token not in (None, "eos"):
            raise ValueError(f"`stop_token` is {self.stop_token!r}; it can be 'eos' or None (see `stop_token_id`).")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError("`stop_token` and `stop_token_id` are both set; give one of them.")
        if self.missing_eos_penalty is not None and self.stop_token is None and self.stop_token_id is None:
            raise ValueError(
                f"`missing_eos_penalty` is {self.missing_eos_penalty} but there is no `stop_token` or `stop_token_id` "
                "that a response could miss; set one of them ('eos' is what TRL looks for)."
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                f"`kl_target` is {self.kl_target} and `kl_coef` 0, from which it could not move; give a start above 0."
            )
        if self.reward_weights is not None and not isinstance(self.reward_weights, (list, tuple)):
            raise ValueError(f"`reward_weights` is {self.reward_weights!r}; give a list, one weight per reward.")
        if self.load_best_model_at_end and self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                f"`metric_for_best_model` is {self.metric_for_best_model!r}, which PPO does not evaluate; give for "
                "example 'objective/scores' or 'win_rate', with `greater_is_better`."
            )
        if self.whiten_scope not in ("global", "rank"):
            raise ValueError(f"`whiten_scope` is {self.whiten_scope!r}; it can be 'global' or 'rank'.")
        if self.value_init not in ("zero", "reward"):
            raise ValueError(f"`value_init` is {self.value_init!r}; it can be 'zero' or 'reward'.")
        if self.optimizer not in ("hf", "tf_adam"):
            raise ValueError(f"`optimizer` is {self.optimizer!r}; it can be 'hf' or 'tf_adam'.")
        if self.cache_implementation not in (None, "static"):
            raise ValueError(f"`cache_implementation` is {self.cache_implementation!r}; it can be 'static' or None.")
        if self.optimizer == "tf_adam" and self.optim != type(self).__dataclass_fields__["optim"].default:
            raise ValueError(f"`optim` is {self.optim!r} and `optimizer` is 'tf_adam'; give one of them.")
        if self.optimizer == "tf_adam":
            check_tf_adam(self)


@dataclass(frozen=True)
class UpdatePlan:
    """How one update is divided. Sizes are episodes per process unless said otherwise.

    Args:
        world_size: Processes.
        local_batch_size: Episodes a process collects per update.
        local_mini_batch_size: Episodes behind one optimiser step.
        micro_batch_size: Episodes in one forward and backward pass.
        num_ppo_epochs: Passes over the rollout.
        updates: Updates in the whole run.
        samples_per_query: Episodes of one query.
    """

    world_size: int
    local_batch_size: int
    local_mini_batch_size: int
    micro_batch_size: int
    num_ppo_epochs: int
    updates: int
    samples_per_query: int = 1

    @classmethod
    def from_config(cls, args: ZieglerPPOConfig, num_queries: int | None) -> "UpdatePlan":
        """The plan of `args` on a dataset of `num_queries` (`None` for a stream, whose length the run must not need).

        Raises `ValueError` where something does not divide exactly.
        """
        local = args.per_device_train_batch_size * args.gradient_accumulation_steps
        batch = local * args.world_size
        if local % args.num_mini_batches:
            raise ValueError(
                f"`num_mini_batches` is {args.num_mini_batches}, which does not divide the {local} episodes per "
                "process (`per_device_train_batch_size` x `gradient_accumulation_steps`)."
            )
        mini = local // args.num_mini_batches
        micro = min(args.per_device_train_batch_size, mini)
        if mini % micro:
            raise ValueError(
                f"A minibatch of {mini} episodes is not a multiple of `per_device_train_batch_size` {micro}; "
                "choose sizes that divide exactly."
            )
        samples = args.num_samples_per_query
        if micro % samples:
            raise ValueError(
                f"`num_samples_per_query` is {samples}, which does not divide the {micro} episodes of a micro-batch "
                "(`per_device_train_batch_size`, or a minibatch if that is smaller), where they share their query."
            )
        whitened = mini * (args.world_size if args.whiten_scope == "global" else 1)
        if args.whiten_rewards and whitened < 8:
            raise ValueError(
                f"`whiten_rewards` is on but a minibatch has {whitened} episodes; whitening needs at least 8."
            )
        if num_queries is not None and num_queries * samples < batch:
            each = " / `num_samples_per_query`" if samples > 1 else ""
            raise ValueError(
                f"`train_dataset` has {num_queries} prompts, fewer than the {batch // samples} of one update "
                f"(`per_device_train_batch_size` x `gradient_accumulation_steps` x processes{each}); lower the batch "
                "size."
            )
        episodes = args.total_episodes or int(args.num_train_epochs * (num_queries or 0) * samples)
        updates = args.max_steps if args.max_steps > 0 else math.ceil(episodes / batch)
        return cls(args.world_size, local, mini, micro, args.num_ppo_epochs, updates, samples)

    @property
    def batch_size(self) -> int:
        """Episodes per update over all processes."""
        return self.local_batch_size * self.world_size

    @property
    def num_queries(self) -> int:
        """Queries per update over all processes."""
        return self.batch_size // self.samples_per_query

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps per update: epochs times minibatches."""
        return self.num_ppo_epochs * (self.local_batch_size // self.local_mini_batch_size)

    @property
    def micro_batches_per_step(self) -> int:
        """Forward and backward passes accumulated into one optimiser step."""
        return self.local_mini_batch_size // self.micro_batch_size

    @property
    def micro_batches_per_update(self) -> int:
        """Forward and backward passes of one update."""
        return self.steps_per_update * self.micro_batches_per_step

    def describe(self) -> str:
        """One line that names every size, for the log."""
        return (
            f"{_counted(self.updates, 'update')} of {_counted(self.batch_size, 'episode')} "
            f"({_counted(self.world_size, 'process')} x {self.local_batch_size}); per update "
            f"{_counted(self.steps_per_update, 'optimiser step')} ({_counted(self.num_ppo_epochs, 'epoch')}) on "
            f"minibatches of {self.local_mini_batch_size} per process, "
            f"{_counted(self.micro_batches_per_step, 'micro-batch')} of {self.micro_batch_size}"
        )


def _counted(count: int, noun: str) -> str:
    """The number with its noun, in the plural where there is not one."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith(('ss', 'tch')) else 's'}"
