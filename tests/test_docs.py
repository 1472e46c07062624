"""The pages in docs/: their code runs, their metrics are those of a real run, their files exist."""

import re
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from ppo_runs import PROMPTS, letter_e, training_logs
from reward_records import records
from trl import ModelConfig, TrlParser

from trl_ziegler import BestOfKRewardConfig, ZieglerPPOConfig
from trl_ziegler.experiments.arguments import StyleArguments, SummaryArguments
from trl_ziegler.experiments.comparison import ComparisonArguments
from trl_ziegler.experiments.own_data import PolicyScriptArguments, RewardScriptArguments

pytest_plugins = ("ppo_fixtures", "reward_fixtures")

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("**/*.md"), *ROOT.glob("*.md"), ROOT / "recipes" / "README.md"])
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
OF_THE_LIBRARY = {"step", "epoch"}


def documented_metrics(page: str) -> set[str]:
    """The first cells of the tables of keys with unit and meaning."""
    text = (ROOT / "docs" / page).read_text()
    tables = re.findall(r"^\| key \| unit \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    return set(re.findall(r"^\| `([^`]+)` \|", "".join(tables), flags=re.MULTILINE))


def named(key: str) -> str:
    return "rewards/<name>" if key.startswith("rewards/") else key


def test_every_metric_of_a_run_is_documented_and_the_other_way_round(train):
    held_out = Dataset.from_dict({"prompt": PROMPTS})
    text = Dataset.from_dict({"text": PROMPTS})
    trainer = train(
        target_kl=1e3,
        pretraining_dataset=text,
        ptx_coef=1.0,
        ptx_length=8,
        evaluate_with=held_out,
        eval_strategy="steps",
        eval_steps=1,
        reward_model=letter_e,
    )
    logged = {named(key) for row in training_logs(trainer) for key in row} - OF_THE_LIBRARY
    evaluated = {key for row in trainer.state.log_history for key in row if key.startswith("eval_")}
    table = documented_metrics("ppo_trainer.md")
    assert logged == {key for key in table if not key.startswith("eval_")}
    own = {key for key in evaluated if key.removeprefix("eval_") not in {"runtime", *logged}}
    own = {key for key in own if not key.endswith("_per_second") and named(key.removeprefix("eval_")) not in logged}
    assert own == {key for key in table if key.startswith("eval_")}


def test_every_metric_of_a_reward_training_is_documented_and_the_other_way_round(make_trainer):
    trainer = make_trainer(records(8), eval_dataset=records(8, seed=1), eval_strategy="epoch")
    trainer.train()
    logged = {key for row in training_logs(trainer) for key in row} - OF_THE_LIBRARY
    assert logged == documented_metrics("reward_trainer.md")
    evaluated = {key for row in trainer.state.log_history for key in row if key.startswith("eval_")}
    measured = {key.removeprefix("eval_") for key in evaluated if not key.endswith(("_per_second", "_runtime"))}
    assert measured == logged - {"grad_norm", "learning_rate"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_that_exist(page):
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for path in re.findall(r"(?<![\w/])((?:recipes|tests|docs|trl_ziegler)/[\w./-]+)", block):
            assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_runs_as_it_stands(page, make_causal_lm, tokenizer, tmp_path, monkeypatch):
    """With a tiny model in the place of the hub's."""
    folder = tmp_path / "gpt2"
    make_causal_lm().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block.replace('"gpt2"', repr(str(folder))), page.name, "exec"), namespace)


def options(parser: ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def options_of(recipe: str) -> set[str]:
    """The flags that a recipe reads; those of its sections stand for all of `--section.key`."""
    own = {"reward": (RewardScriptArguments, BestOfKRewardConfig), "ppo": (PolicyScriptArguments, ZieglerPPOConfig)}
    if recipe in own:
        return {*options(TrlParser((*own[recipe], ModelConfig))), "--config"}
    kinds = {"tldr": SummaryArguments, "cnndm": SummaryArguments, "experiments": ComparisonArguments}
    arguments = kinds.get(recipe, StyleArguments)
    return {"--config", *(f"--{item.name}" for item in fields(arguments))}


def command_lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    commands = [text.replace("\\\n", " ") for language, text in blocks if language in ("bash", "sh", "")]
    return [line.split("#")[0] for text in commands for line in text.splitlines()]


def flags(words: str) -> set[str]:
    return {word.split("=")[0].split(".")[0] for word in words.split() if re.match(r"--\w", word)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_use_flags_and_targets_that_exist(page):
    targets = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for line in command_lines(page):
        launched = re.match(r"accelerate launch (.*?)recipes/(\w+)\.py(.*)", line.strip())
        if launched:
            before, recipe, after = launched.groups()
            assert flags(before) <= options(launch_command_parser()), line
            assert flags(after) <= options_of(recipe), line
        made = re.match(r"make ([\w-]+)", line.strip())
        assert made is None or made[1] in targets, line
