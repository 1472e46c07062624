"""The numbers of Ziegler et al. 2019, as data: what the paper reports, and what its released code runs with.

Sources: the paper's section 2 and appendix; openai/lm-human-preferences (cbfd210), `launch.py`. A number that a source
does not give, gives as a range, or that is known from memory only carries "ours" with the reason. What a task fixes
(temperature, lengths, cut, penalty) is in tasks.py: BOOKS for sentiment and descriptiveness, TLDR, CNNDM.

Batch sizes are totals over all processes: records for the reward model, episodes for the policy.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

Table = Mapping[str, Mapping[str, Any]]

# The paper gives gamma and the epochs and follows the defaults of OpenAI's PPO2 in the rest. That is known from memory
# only, and PPO2 has vf_coef 0.5 and clips gradients at 0.5; so the other numbers, the code's, are ours for the paper.
_PPO = {
    "num_ppo_epochs": 4,
    "num_mini_batches": 1,
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "linear",
    "optimizer": "tf_adam",
}
_RELEASED_PPO = {
    **_PPO,
    "total_episodes": 1_000_000,
    "whiten_scope": "rank",
    "seed": 1,
    "data_seed": 0,  # the order of documents does not depend on the run's seed
}
_RELEASED_STYLE = {
    **_RELEASED_PPO,
    "batch_size": 512,
    "learning_rate": 1e-5,
    "kl_coef": 0.15,
    "kl_target": 6.0,  # for sentiment too, where the paper has 10
    "kl_horizon": 10_000,
    "whiten_rewards": True,
}
# The released summary recipes set a key that does not exist and cannot start. Its name says what was meant: no
# whitening of rewards.
_RELEASED_SUMMARIES = {**_RELEASED_PPO, "batch_size": 32, "learning_rate": 2e-6, "whiten_rewards": False}
RELEASED_POLICY: Table = {
    "sentiment": _RELEASED_STYLE,
    "descriptiveness": _RELEASED_STYLE,
    "tldr": {**_RELEASED_SUMMARIES, "kl_coef": 0.03},
    "cnndm": {**_RELEASED_SUMMARIES, "kl_coef": 0.01},  # the paper has 0.1
}

_PAPER_PPO = {
    **_PPO,
    "total_episodes": 2_000_000,
    "whiten_scope": "global",  # ours: with it a run does not depend on the number of processes
}
_PAPER_STYLE = {
    **_PAPER_PPO,
    "batch_size": 1024,
    "learning_rate": 1.41e-5,
    "kl_coef": 0.15,  # ours: the paper adapts it from a start it does not give; this is the code's
    "kl_horizon": 10_240,  # ours: makes the paper's gain of 0.1 per update of 1024 episodes exact; the code has 10,000
    "whiten_rewards": True,  # ours: the paper does not say; the code's
}
_PAPER_SUMMARIES = {
    **_PAPER_PPO,
    "batch_size": 512,
    "learning_rate": 7.07e-6,
    "whiten_rewards": False,  # ours: the paper does not say; what the code meant
}
PAPER_POLICY: Table = {
    "sentiment": {**_PAPER_STYLE, "kl_target": 10.0},
    "descriptiveness": {**_PAPER_STYLE, "kl_target": 6.0},
    "tldr": {**_PAPER_SUMMARIES, "kl_coef": 0.03},
    "cnndm": {**_PAPER_SUMMARIES, "kl_coef": 0.1},
}

# The paper gives batch, rate, one epoch and no dropout, which is the default of `disable_dropout` in TRL's config.
# Schedule, clipping and optimiser are the code's, and ours for the paper.
_REWARD = {
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.0,
    "optimizer": "tf_adam",
}
_RELEASED_STYLE_REWARD = {**_REWARD, "batch_size": 32, "learning_rate": 5e-5, "seed": 1}
_RELEASED_SUMMARY_REWARD = {**_REWARD, "batch_size": 16, "learning_rate": 2.5e-5, "seed": 1}
RELEASED_REWARD: Table = {
    "sentiment": _RELEASED_STYLE_REWARD,
    "descriptiveness": _RELEASED_STYLE_REWARD,
    "tldr": _RELEASED_SUMMARY_REWARD,
    "cnndm": _RELEASED_SUMMARY_REWARD,
}
_PAPER_STYLE_REWARD = {**_REWARD, "batch_size": 8, "learning_rate": 1.77e-5}
_PAPER_SUMMARY_REWARD = {**_REWARD, "batch_size": 32, "learning_rate": 1.77e-5}
PAPER_REWARD: Table = {
    "sentiment": _PAPER_STYLE_REWARD,
    "descriptiveness": _PAPER_STYLE_REWARD,
    "tldr": _PAPER_SUMMARY_REWARD,
    "cnndm": _PAPER_SUMMARY_REWARD,
}

# What a run needs besides the two configs: the start model, how many labels it trains on, how many of its responses
# normalise the reward (256 in the code, rounded up to whole rollout batches of 512 and 128).
RELEASED_RUN: Table = {
    "sentiment": {"model": "gpt2", "num_labels": 4_992, "num_normalization_samples": 512},
    "descriptiveness": {"model": "gpt2", "num_labels": 4_992, "num_normalization_samples": 512},
    "tldr": {"model": "gpt2", "num_labels": 46_000, "num_normalization_samples": 256},
    "cnndm": {"model": "gpt2", "num_labels": 46_000, "num_normalization_samples": 256},
}
PAPER_RUN: Table = {
    # ours: 5,000 are the main runs of a sweep to 20,000; 60,000 is the largest; the samples are the code's
    "sentiment": {"model": "gpt2-large", "num_labels": 5_000, "num_normalization_samples": 512},
    "descriptiveness": {"model": "gpt2-large", "num_labels": 5_000, "num_normalization_samples": 512},
    "tldr": {"model": "gpt2-large", "num_labels": 60_000, "num_normalization_samples": 256},
    "cnndm": {"model": "gpt2-large", "num_labels": 60_000, "num_normalization_samples": 256},
}


class Presets:
    """Two constructors of a config class, with the numbers of one task and its batch divided over the processes.

    `task` is `"sentiment"`, `"descriptiveness"`, `"tldr"` or `"cnndm"`. `overrides` are fields of the config and win.
    The batch of the preset is a total: `per_device_train_batch_size` becomes its share for each of the processes that
    run. An override of that field, or of `gradient_accumulation_steps`, sets the other so that the total stays;
    overriding both gives another total. What the trainer takes as its `task` (lengths, temperature, penalty) is not
    in the config: pass BOOKS for sentiment and descriptiveness, TLDR or CNNDM.

    Both raise `ValueError` on an unknown task, or where the batch does not divide exactly.

    Examples:
    ```python
    >>> from trl_ziegler import ZieglerPPOConfig

    >>> args = ZieglerPPOConfig.released_code("sentiment", output_dir="run", per_device_train_batch_size=64)
    >>> args.gradient_accumulation_steps, args.kl_target
    (8, 6.0)
    ```
    """

    _paper: ClassVar[Table]
    _released_code: ClassVar[Table]

    @classmethod
    def paper(cls, task: str, **overrides: Any) -> Self:
        """The paper's numbers; where it is silent, those that presets.py marks as ours."""
        return _config(cls, cls._paper, task, overrides)

    @classmethod
    def released_code(cls, task: str, **overrides: Any) -> Self:
        """The numbers that the released code runs with."""
        return _config(cls, cls._released_code, task, overrides)


def _config(config_class: Callable[..., Any], table: Table, task: str, overrides: dict[str, Any]) -> Any:
    if task not in table:
        raise ValueError(f"`task` is {task!r}; there are numbers for {', '.join(map(repr, table))}.")
    numbers = dict(table[task])
    total = numbers.pop("batch_size")
    args = config_class(**{**numbers, **overrides})
    per_device, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    if per_device in overrides and accumulation in overrides:
        return args
    free, other = (accumulation, per_device) if per_device in overrides else (per_device, accumulation)
    # The number of processes is known to the finished config only, which has looked at how the program was launched.
    parts = args.world_size * getattr(args, other)
    if total % parts:
        raise ValueError(
            f"The batch of {total} for {task!r} does not divide over {args.world_size} processes with `{other}` "
            f"{getattr(args, other)}; choose numbers that do, or set both `{per_device}` and `{accumulation}`."
        )
    setattr(args, free, total // parts)
    return args
