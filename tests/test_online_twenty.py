"""Simulated people at the labelling page, and the command in which twenty of them label a whole run."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import pytest

from trl_ziegler.experiments import laptop
from trl_ziegler.experiments.pipeline import read_jsonl
from trl_ziegler.experiments.simulated_labellers import (
    OwnSpread,
    answer_together,
    read_tokens,
    simulated_people,
)
from trl_ziegler.labelers import LengthScorer, ScoreLabeler
from trl_ziegler.labelers.human import LabelStore
from trl_ziegler.metrics import Agreement

ROOT = Path(__file__).parents[1]


# ---- Who they are ---------------------------------------------------------------------------------------------------


def test_scores_come_in_units_of_their_spread_so_far():
    score = OwnSpread(LengthScorer())
    assert score(["p"] * 2, ["a", "a"]) == [1.0, 1.0]  # no spread yet
    assert score(["p"] * 2, ["a", "a b c"]) == [1.0, 3.0]  # variances 0 and 2, mean 1
    assert score(["p"] * 2, ["a", "a b c d e"]) == pytest.approx([(3 / 10) ** 0.5, 5 * (3 / 10) ** 0.5])  # 0, 2, 8


@pytest.mark.parametrize("task", ["sentiment", "descriptiveness", "tldr", "cnndm"])
def test_they_see_what_the_task_asks_for_and_agree_like_the_papers_people(task):
    names = [f"person {i}" for i in range(5)]
    people = simulated_people(task, names, seed=1)
    assert list(people) == names
    prompts, completions = comparisons(task, 200)
    labels = {name: [person.label([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
              for name, person in people.items()}  # fmt: skip
    ratings = {"predictions": list(zip(*labels.values(), strict=True)), "references": [names] * 200}
    expected = 0.38 if task in ("sentiment", "descriptiveness") else 0.46
    assert Agreement(keep_in_memory=True).compute(**ratings, num_choices=4)["agreement"] == pytest.approx(
        expected, abs=0.09
    )


def comparisons(task, count):
    """Texts of the embedded world, four of them behind each prompt."""
    if task in ("sentiment", "descriptiveness"):
        texts = laptop.passages(4 * count, seed=3)
        prompts = ["Once"] * count
    else:
        posts = laptop.make_posts(count, seed=3)
        prompts = [row["post"] for row in posts]
        texts = [f" {part}" for row in posts for part in variants(row["summary"], row["post"])]
    return prompts, [texts[4 * i : 4 * i + 4] for i in range(count)]


def variants(summary, post):
    words = summary.split()
    return summary, " ".join(words[: len(words) // 2]), "Ella ate a cake.", post.splitlines()[-1]


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="`task` is 'jokes'; simulated people know what to look for in sentiment"):
        simulated_people("jokes", ["ann"], 0)


def test_tokens_are_read_by_name_and_a_broken_line_is_not_repeated(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("ann\tabc\nbob b\tdef\n")
    assert read_tokens(file) == {"ann": "abc", "bob b": "def"}
    file.write_text("ann\tabc\nsecret\n")
    with pytest.raises(ValueError, match="tokens, line 2 is no name and token") as refusal:
        read_tokens(file)
    assert "secret" not in str(refusal.value)
    file.write_text("")
    with pytest.raises(ValueError, match="tokens is empty; write the output of `python"):
        read_tokens(file)


# ---- How they answer ------------------------------------------------------------------------------------------------


class Page:
    """Has one queue of comparisons for all, who begin together; refuses everybody once it is empty."""

    def __init__(self, count, people=1):
        self.left, self.given, self.lock = list(range(count)), [], threading.Lock()
        self.all_here, self.own = threading.Barrier(people, timeout=60), threading.local()

    def next(self):
        if not hasattr(self.own, "begun"):
            self.all_here.wait()
            self.own.begun = True
        with self.lock:
            if not self.left:
                raise PermissionError("the page is closed")
            return {"id": self.left.pop(), "prompt": "p", "completions": [" a", " a b c", " a b"]}

    def answer(self, identity, *, place, seconds):
        with self.lock:
            self.given.append((identity, place, seconds))


def test_all_of_them_answer_what_is_shown_until_one_is_refused():
    page, counts = Page(40, people=2), {"ann": 0, "bob": 0}
    people = dict.fromkeys(counts, ScoreLabeler(LengthScorer()))
    with pytest.raises(PermissionError, match="the page is closed"):
        answer_together(dict.fromkeys(counts, page), people, 0.002, counts)
    assert sorted(identity for identity, _, _ in page.given) == list(range(40))
    assert {place for _, place, _ in page.given} == {1}
    assert median(seconds for _, _, seconds in page.given) >= 0.002
    assert sum(counts.values()) == 40 and min(counts.values()) > 0


class EndlessPage(Page):
    """Has one comparison, again and again."""

    def next(self):
        return {"id": 0, "prompt": "p", "completions": [" a", " b"]}


def test_the_refusal_of_one_ends_the_work_of_the_others():
    pages, counts = {"ann": Page(0), "bob": EndlessPage(0)}, {"ann": 0, "bob": 0}
    with pytest.raises(PermissionError, match="the page is closed"):
        answer_together(pages, dict.fromkeys(pages, ScoreLabeler(LengthScorer())), 0.001, counts)


# ---- The store with its people --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("died_at", ["--add_labeller", "--replace_token"])
def test_the_command_goes_on_after_a_kill_while_the_people_are_added(tmp_path, died_at):
    """A kill between an act of the label command and what the script does next; the rest of the script is left out."""
    run, python = tmp_path / "run", tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$*" in *--add_labeller*|*--replace_token*) "{sys.executable}" "$@" || exit ;; *) exit 3 ;; esac\n'
        '[[ -z "$DIE_AT" || "$*" != *"$DIE_AT"* ]] || kill -9 $PPID\n'
    )
    python.chmod(0o700)

    def call(die_at=""):
        environment = {**os.environ, "PYTHON": str(python), "DIE_AT": die_at}
        command = ["bash", str(ROOT / "recipes" / "twenty_labellers.sh"), str(run)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert call(died_at).returncode in (137, -9)
    assert not (run / "tokens").exists()
    again = call()
    assert again.returncode == 1 and "there already" not in again.stderr  # at the page, which the test leaves out
    tokens = read_tokens(run / "tokens")
    with LabelStore(run / "labels.db") as store:
        assert [store.authenticate(token) for token in tokens.values()] == list(tokens)
    assert len(tokens) == 20
    assert stat.S_IMODE((run / "tokens").stat().st_mode) == 0o600


# ---- The whole command ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_people_label_a_run_over_http_and_every_answer_is_counted(tmp_path):
    run = tmp_path / "run"
    environment = {
        **os.environ, "PYTHON": sys.executable, "CONFIG": "recipes/configs/sentiment/smoke-online.yaml",
        "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    command = ["bash", str(ROOT / "recipes" / "twenty_labellers.sh"), str(run), "--online_margin", "8"]
    done = subprocess.run(
        [*command, "--cpu_threads", "1"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == f"Report: {run / 'report.html'}"
    assert stat.S_IMODE((run / "tokens").stat().st_mode) == 0o600
    address = urlsplit(lines[0].removeprefix("Labelling page: "))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port))  # the page has ended with the script

    collection = run / "policy" / "collection"
    asked = [row for file in collection.glob("comparisons-*.jsonl") for row in read_jsonl(file)]
    held_out = read_jsonl(run / "label" / "labels.jsonl")
    said = re.findall(r"^person-\d\d\t(\d+) answers$", (run / "people.log").read_text(), flags=re.MULTILINE)
    figures = json.loads((run / "metrics.json").read_text())["labelling"]
    with LabelStore(run / "labels.db") as store:
        comparisons, progress, ratings = store.comparisons(), store.progress(), store.ratings()
        majority = {comparison.id: comparison for comparison in comparisons}
        labels = {(majority[i].prompt, majority[i].step, *majority[i].completions): b
                  for i, b in store.majority().items()}  # fmt: skip
    assert len(comparisons) == len(asked) + len(held_out) > 96
    assert {len(names) for names in ratings["references"]} <= {1, 2, 3, 4, 5}
    answers = sum(map(len, ratings["predictions"]))
    assert answers == sum(entry.labels for entry in progress) == sum(map(int, said)) == figures["answers"]
    assert figures["labellers"] == sum(entry.labels > 0 for entry in progress) <= len(progress) == len(said) == 20
    expected = Agreement(keep_in_memory=True).compute(**ratings)
    assert figures["agreement"] == {name: expected[name] for name in ("agreement", "chance", "kappa", "n", "pairs")}
    used = {row["number"]: row["label"] for row in read_jsonl(collection / "labels.jsonl")}
    assert len(used) >= 90
    assert all(
        labels[key(asked_row)] == used[asked_row["number"]] for asked_row in asked if asked_row["number"] in used
    )
    assert all(labels[key(row)] == row["label"] for row in held_out)
    page = (run / "report.html").read_text()
    assert f"Answers of {figures['labellers']} people" in page and "Fleiss&#39; kappa" in page


def key(row):
    return (row["prompt"], row.get("step"), *row["completions"])
