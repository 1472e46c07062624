"""The presets against the numbers of the paper and of the released code, written out once more, and the recipes."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from trl_ziegler import BOOKS, CNNDM, TLDR, BestOfKRewardConfig, Task, ZieglerPPOConfig
from trl_ziegler.ppo_config import UpdatePlan
from trl_ziegler.presets import (
    PAPER_POLICY,
    PAPER_REWARD,
    PAPER_RUN,
    RELEASED_POLICY,
    RELEASED_REWARD,
    RELEASED_RUN,
)

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
STYLE = ("sentiment", "descriptiveness")
SUMMARIES = ("tldr", "cnndm")
TASKS = STYLE + SUMMARIES
SCALES = ("gpt2-124m", "paper-774m")
RECIPES = [(task, scale) for task in TASKS for scale in SCALES]
CLASSES = (ZieglerPPOConfig, BestOfKRewardConfig)


@pytest.fixture
def run(tmp_path):
    """Overrides that keep a config out of the working directory and on the CPU."""
    return {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}


@pytest.fixture
def processes(monkeypatch):
    """`processes(8)`: configs are made as if so many processes were running."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: count))

    return pretend


@pytest.mark.parametrize("source", ["paper", "released_code"])
@pytest.mark.parametrize("task", TASKS)
def test_what_paper_and_code_share(run, source, task):
    args = getattr(ZieglerPPOConfig, source)(task, **run)
    assert (args.num_ppo_epochs, args.num_mini_batches) == (4, 1)
    assert (args.gamma, args.lam, args.cliprange, args.cliprange_value, args.vf_coef) == (1.0, 0.95, 0.2, 0.2, 0.1)
    assert (args.lr_scheduler_type, args.warmup_steps, args.max_grad_norm) == ("linear", 0, 0)
    assert (args.optimizer, args.adam_beta1, args.adam_beta2, args.weight_decay) == ("tf_adam", 0.9, 0.999, 0)
    assert (args.bf16, args.kl_estimator, args.value_init) == (False, "k1", "zero")


@pytest.mark.parametrize(
    ("source", "task", "batch", "rate", "episodes", "whiten_rewards"),
    [
        ("released_code", "sentiment", 512, 1e-5, 1_000_000, True),
        ("released_code", "descriptiveness", 512, 1e-5, 1_000_000, True),
        ("released_code", "tldr", 32, 2e-6, 1_000_000, False),
        ("released_code", "cnndm", 32, 2e-6, 1_000_000, False),
        ("paper", "sentiment", 1024, 1.41e-5, 2_000_000, True),
        ("paper", "descriptiveness", 1024, 1.41e-5, 2_000_000, True),
        ("paper", "tldr", 512, 7.07e-6, 2_000_000, False),
        ("paper", "cnndm", 512, 7.07e-6, 2_000_000, False),
    ],
)
def test_size_and_rate_of_ppo(run, source, task, batch, rate, episodes, whiten_rewards):
    args = getattr(ZieglerPPOConfig, source)(task, **run)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == batch
    assert (args.learning_rate, args.total_episodes, args.whiten_rewards) == (rate, episodes, whiten_rewards)


@pytest.mark.parametrize(
    ("source", "task", "coefficient", "target", "horizon"),
    [
        ("released_code", "sentiment", 0.15, 6.0, 10_000),
        ("released_code", "descriptiveness", 0.15, 6.0, 10_000),
        ("released_code", "tldr", 0.03, None, None),
        ("released_code", "cnndm", 0.01, None, None),
        ("paper", "sentiment", 0.15, 10.0, 10_240),
        ("paper", "descriptiveness", 0.15, 6.0, 10_240),
        ("paper", "tldr", 0.03, None, None),
        ("paper", "cnndm", 0.1, None, None),
    ],
)
def test_kl_control(run, source, task, coefficient, target, horizon):
    args = getattr(ZieglerPPOConfig, source)(task, **run)
    assert (args.kl_coef, args.kl_target) == (coefficient, target)
    assert horizon in (None, args.kl_horizon)


def test_gain_of_the_controller_per_update(run):
    gains = {source: getattr(ZieglerPPOConfig, source)("sentiment", **run) for source in ("paper", "released_code")}
    gain = {source: args.per_device_train_batch_size / args.kl_horizon for source, args in gains.items()}
    assert gain == {"paper": 0.1, "released_code": 0.0512}


@pytest.mark.parametrize(("task", "updates"), [("sentiment", 1954), ("tldr", 31_250)])
def test_number_of_updates_is_rounded_up(run, task, updates):
    assert UpdatePlan.from_config(ZieglerPPOConfig.released_code(task, **run), 100_000).updates == updates


@pytest.mark.parametrize("task", TASKS)
def test_what_the_released_code_does_by_rank_or_seed(run, task):
    released, paper = ZieglerPPOConfig.released_code(task, **run), ZieglerPPOConfig.paper(task, **run)
    assert (released.whiten_scope, paper.whiten_scope) == ("rank", "global")
    assert (released.seed, released.data_seed) == (1, 0)
    assert BestOfKRewardConfig.released_code(task, **run).seed == 1


@pytest.mark.parametrize(
    ("source", "tasks", "batch", "rate", "labels"),
    [
        ("released_code", STYLE, 32, 5e-5, 4_992),
        ("released_code", SUMMARIES, 16, 2.5e-5, 46_000),
        ("paper", STYLE, 8, 1.77e-5, 5_000),
        ("paper", SUMMARIES, 32, 1.77e-5, 60_000),
    ],
)
def test_reward_models(run, source, tasks, batch, rate, labels):
    for task in tasks:
        args = getattr(BestOfKRewardConfig, source)(task, **run)
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == batch
        assert (args.learning_rate, args.num_train_epochs, args.disable_dropout) == (rate, 1, True)
        assert (args.lr_scheduler_type, args.warmup_steps, args.max_grad_norm) == ("linear", 0, 0)
        assert (args.optimizer, args.weight_decay, args.bf16, args.loss_type) == ("tf_adam", 0, False, "best_of_k")
        run_numbers = (RELEASED_RUN if source == "released_code" else PAPER_RUN)[task]
        assert run_numbers["num_labels"] == labels
        assert labels % batch == 0  # each label once, and the rate never reaches zero


def test_start_models_and_normalization_samples():
    for table, model in ((RELEASED_RUN, "gpt2"), (PAPER_RUN, "gpt2-large")):
        assert {numbers["model"] for numbers in table.values()} == {model}
        assert [table[task]["num_normalization_samples"] for task in TASKS] == [512, 512, 256, 256]


@pytest.mark.parametrize(
    ("task", "length", "temperature", "query", "stop", "after"),
    [
        (BOOKS, 24, 0.7, 64, ".", 16),
        (TLDR, 75, 0.7, 500, "\n", 55),
        (CNNDM, 75, 0.5, 500, "\n", 55),
    ],
)
def test_task_numbers(task: Task, length, temperature, query, stop, after):
    assert (task.response_length, task.temperature, task.query_length) == (length, temperature, query)
    assert (task.truncate_token, task.truncate_after, task.penalty, task.penalty_rule) == (stop, after, -1, "replace")


@pytest.mark.parametrize("config_class", CLASSES)
@pytest.mark.parametrize("source", ["paper", "released_code"])
def test_unknown_task_is_refused(run, config_class, source):
    message = "`task` is 'imdb'; there are numbers for 'sentiment', 'descriptiveness', 'tldr', 'cnndm'"
    with pytest.raises(ValueError, match=message):
        getattr(config_class, source)("imdb", **run)


@pytest.mark.parametrize("config_class", CLASSES)
def test_overrides_win(run, config_class):
    args = config_class.paper("sentiment", **run, learning_rate=1.0, max_grad_norm=2.0, lr_scheduler_type="cosine")
    assert isinstance(args, config_class)
    assert (args.learning_rate, args.max_grad_norm, args.lr_scheduler_type) == (1.0, 2.0, "cosine")
    with pytest.raises(TypeError, match="learning_speed"):
        config_class.paper("sentiment", **run, learning_speed=1.0)


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ({}, (64, 1)),
        ({"per_device_train_batch_size": 16}, (16, 4)),
        ({"gradient_accumulation_steps": 2}, (32, 2)),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}, (3, 5)),
    ],
)
def test_batch_is_shared_by_the_processes(run, processes, overrides, sizes):
    processes(8)
    args = ZieglerPPOConfig.released_code("sentiment", **run, **overrides)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == sizes


@pytest.mark.parametrize(
    ("count", "overrides", "message"),
    [
        (
            3,
            {},
            "The batch of 8 for 'sentiment' does not divide over 3 processes with `gradient_accumulation_steps` 1",
        ),
        (2, {"per_device_train_batch_size": 3}, "over 2 processes with `per_device_train_batch_size` 3; choose"),
        (2, {"gradient_accumulation_steps": 8}, "over 2 processes with `gradient_accumulation_steps` 8; choose"),
    ],
)
def test_inexact_division_is_refused(run, processes, count, overrides, message):
    processes(count)
    with pytest.raises(ValueError, match=message):
        BestOfKRewardConfig.paper("sentiment", **run, **overrides)


@pytest.mark.parametrize("config_class", CLASSES)
@pytest.mark.parametrize(("task", "scale"), RECIPES)
def test_recipes_have_the_presets_numbers(run, processes, task, scale, config_class):
    policy, released = config_class is ZieglerPPOConfig, scale == "gpt2-124m"
    processes(1 if released else 8)  # as the recipes' comments say
    recipe = yaml.safe_load((CONFIGS / task / f"{scale}.yaml").read_text())["policy" if policy else "reward"]
    by_hand = config_class(**run, **recipe)
    source = config_class.released_code if released else config_class.paper
    preset = source(task, **run, per_device_train_batch_size=by_hand.per_device_train_batch_size)
    tables = {ZieglerPPOConfig: (PAPER_POLICY, RELEASED_POLICY), BestOfKRewardConfig: (PAPER_REWARD, RELEASED_REWARD)}
    # A recipe's own flag sets the seed of its run.
    names = {*tables[config_class][released][task], "gradient_accumulation_steps"} - {"batch_size", "seed"}
    assert {name: getattr(by_hand, name) for name in names} == {name: getattr(preset, name) for name in names}


@pytest.mark.parametrize(("task", "scale"), RECIPES)
def test_recipes_train_and_normalise_on_as_much(task, scale):
    recipe = yaml.safe_load((CONFIGS / task / f"{scale}.yaml").read_text())
    numbers = (RELEASED_RUN if scale == "gpt2-124m" else PAPER_RUN)[task]
    assert {name: recipe[name] for name in numbers} == dict(numbers)


def test_only_the_released_codes_recipes_drop_the_lower_bound_of_query_lengths():
    for task in STYLE:
        tasks = [yaml.safe_load((CONFIGS / task / f"{scale}.yaml").read_text()).get("task") for scale in SCALES]
        assert tasks == [{"min_query_length": 1}, None]
    assert BOOKS.min_query_length == 32


@pytest.mark.parametrize("scale", SCALES)
def test_summaries_are_cut_by_the_tasks_numbers(scale):
    """Articles on the hub have no line ends, where the reference ends its queries; nothing else is changed."""
    recipes = {task: yaml.safe_load((CONFIGS / task / f"{scale}.yaml").read_text()) for task in SUMMARIES}
    assert "task" not in recipes["tldr"]
    assert recipes["cnndm"]["task"] == {"query_end": None}
    assert (TLDR.query_end, CNNDM.query_end) == (None, "\n")


@pytest.mark.parametrize("task", SUMMARIES)
def test_the_papers_supervised_baseline_is_swept_over_8_rates_from_1e_4_to_3e_4(task):
    recipe = yaml.safe_load((CONFIGS / task / "paper-774m.yaml").read_text())
    rates = recipe["sft_learning_rates"]
    assert (len(rates), rates[0], rates[-1]) == (8, 1e-4, 3e-4)
    ratios = [after / before for before, after in pairwise(rates)]
    assert ratios == pytest.approx([3 ** (1 / 7)] * 7, rel=0.01)
    assert (recipe["sft"]["num_train_epochs"], recipe["sft"]["lr_scheduler_type"]) == (1, "cosine")
    assert recipe["starts"] == ["supervised", "zero_shot"]
