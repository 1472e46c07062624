"""docs/tutorials/labelling.md from its first block to a trained policy, with people who are scripts.

Its Python is fenced as `py`: the blocks need the commands between them and labels that somebody gives, so they are run
here and not with the other pages (tests/test_docs.py).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from trl_ziegler.experiments.arguments import parse_recipe_arguments
from trl_ziegler.experiments.recipe import EXPERIMENTS
from trl_ziegler.labelers.human.page_client import PageClient

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorials" / "labelling.md"
BLOCK = re.compile(r"^```(py|bash)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
SMOKE = {"--total_episodes 512": "--total_episodes 32", "accelerate launch": "python"}


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    return block.replace("\\\n", " ").strip().splitlines()


def taste(text: str) -> tuple[int, str]:
    """The longest, and no ties."""
    return len(text), text


class Reader:
    """Does what the page says in a folder, and answers where people should."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.namespace: dict = {}
        self.tokens: dict[str, str] = {}
        self.answers = 0

    def follow(self, kind: str, block: str) -> None:
        if kind == "py":
            exec(compile(block.replace('"gpt2"', repr(str(self.model))), PAGE.name, "exec"), self.namespace)
            return
        for command in commands(block):
            if command.startswith("pip install"):
                assert command == 'pip install -e ".[label]" -c constraints.txt'
            elif "--instructions" in command:
                self.label_at_the_page(f"{command} --port 0")
            else:
                said = self.shell(command)
                if "--add_labeller" in command:
                    self.tokens = dict(line.split("\t") for line in said.splitlines())

    def shell(self, command: str) -> str:
        for text, smoke in {**SMOKE, " gpt2 ": f" {self.model} "}.items():
            command = command.replace(text, smoke)
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def label_at_the_page(self, command: str) -> None:
        """Each labeller takes what is most to the common taste, until there is nothing left."""
        page = subprocess.Popen(
            command.split(), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        try:
            address = re.fullmatch(r"Labelling page: (\S+)\n", page.stdout.readline())[1]
            assert list(self.tokens) == ["ann", "bob", "cyd"]
            for token in self.tokens.values():
                client = PageClient(address, token)
                while (work := client.next()) is not None:
                    texts = work["completions"]
                    client.answer(work["id"], place=texts.index(max(texts, key=taste)), seconds=0.1)
                    self.answers += 1
        finally:
            page.kill()
            page.communicate()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_zero_to_a_policy_from_ones_own_labels(make_causal_lm, tokenizer, tmp_path, monkeypatch, capsys):
    model, folder = tmp_path / "model", tmp_path / "work"
    folder.mkdir()
    (folder / "recipes").symlink_to(ROOT / "recipes")
    make_causal_lm().save_pretrained(model)
    tokenizer.save_pretrained(model)
    monkeypatch.chdir(folder)
    by_hand, _ = PAGE.read_text().split("## Let a recipe ask")
    reader = Reader(folder, model)
    for kind, block in BLOCK.findall(by_hand):
        reader.follow(kind, block)

    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    assert reader.answers == sum(row["repeats"] for row in rows) > len(rows) > 30
    assert not any(tokenizer.eos_token in text for row in rows for text in row["completions"])
    assert "agreement 1.00, chance 0.25" in capsys.readouterr().out
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    assert len(labels) == len(rows)
    assert all(row["completions"][row["label"]] == max(row["completions"], key=taste) for row in labels)
    everything = [json.loads(line) for line in (folder / "everything.jsonl").read_text().splitlines()]
    assert sum(len(row["answers"]) for row in everything) == reader.answers
    assert "eval_accuracy" in json.loads((folder / "my-reward" / "eval_results.json").read_text())
    trained = AutoModelForCausalLM.from_pretrained(folder / "my-policy").state_dict()
    start = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert any((trained[name] != start[name]).any() for name in start)


def test_the_recipes_of_the_page_know_their_options():
    kinds = {task: kind for kind in EXPERIMENTS for task in kind.tasks}
    _, recipes = PAGE.read_text().split("## Let a recipe ask")
    recipes = recipes.replace("\\\n", " ")
    launched = re.findall(r"^accelerate launch recipes/(\w+)\.py (.*)$", recipes, flags=re.MULTILINE)
    assert len(launched) == 3
    for task, options in launched:
        default = ROOT / "recipes" / "configs" / task / "laptop.yaml"
        options = options.replace("recipes/configs", str(ROOT / "recipes" / "configs"))
        args, _ = parse_recipe_arguments(kinds[task].arguments, default, options.split())
        assert args.label_store == "recipe.db"
        assert args.mode == ("online" if "online" in options else "best_of_k")
