"""Several processes, killed ones, and one where more were asked for."""

import json
import os
from datetime import timedelta

import pytest
import torch
from accelerate import PartialState
from launches import launched, several_processes

from trl_ziegler.experiments.recipe import LONGEST_WAIT, start_processes


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "2"}, {"MASTER_ADDR": "127.0.0.1"}], ids=["torchrun", "accelerate launch"]
)
def test_one_process_where_several_were_asked_for_is_refused(monkeypatch, environment):
    PartialState(cpu=True)  # already alone
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=r"Several processes were asked for, but 1 is at work.*two_cpu_processes"):
        start_processes(None)


def test_one_process_takes_the_cores_or_what_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    start_processes(None)
    assert torch.get_num_threads() == 3
    start_processes(2)
    assert torch.get_num_threads() == 2
    assert "Using 3 CPU threads in each of 1 processes." in capsys.readouterr().out


def test_all_cores_count_where_the_system_does_not_say_which_are_ours(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    start_processes(None)
    assert torch.get_num_threads() == 3


WAITS = """
from torch.distributed import group
from trl_ziegler import ZieglerPPOConfig
from trl_ziegler.experiments.recipe import end_processes, start_processes
state = start_processes(1)
ZieglerPPOConfig("{folder}", bf16=False, use_cpu=True, total_episodes=8)  # its `ddp_timeout` comes too late
print(f"waits {{group.WORLD._get_backend(state.device).options._timeout.days}} days")  # one string: in one piece
end_processes(state)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_wait_for_one_that_samples_or_asks_people(tmp_path):
    """By default NCCL grants ten minutes and gloo thirty."""
    (tmp_path / "waits.py").write_text(WAITS.format(folder=tmp_path / "policy"))
    output = launched(*several_processes(), str(tmp_path / "waits.py"))
    assert output.count(f"waits {LONGEST_WAIT.days} days") == 2


def test_the_wait_is_set_where_the_processes_meet(monkeypatch):
    """Whatever comes later, a config's `ddp_timeout` for one, finds the process group as it is."""
    asked = {}

    def meet(**arguments):
        asked.update(arguments)
        return PartialState(cpu=True)

    monkeypatch.setattr("trl_ziegler.experiments.recipe.PartialState", meet)
    start_processes(1)
    assert asked["timeout"] >= timedelta(days=30)  # people take their time


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_killed_run_resumes_to_the_last_bit(num_processes):
    output = launched("tests/kill_and_resume.py", "--num_processes", str(num_processes))
    assert "Killed in update 3 of 4" in output
    assert output.count("equal") == 3 and "DIFFER" not in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recipe_runs_in_two_processes(tmp_path):
    run_dir = tmp_path / "run"
    output = launched(
        *several_processes(),
        *("recipes/sentiment.py", "--output_dir", str(run_dir)),
        *("--config", "recipes/configs/sentiment/smoke.yaml", "--policy.rollout_dir", str(tmp_path / "rollouts")),
    )
    assert "Using 1 CPU threads in each of 2 processes." in output
    assert f"Report: {run_dir / 'report.html'}" in output
    first, second = (
        (tmp_path / "rollouts" / f"rollouts-000001-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)
    )
    assert len(first) == len(second)
    queries = [{json.loads(line)["prompt"] for line in lines} for lines in (first, second)]
    assert queries[0] != queries[1]  # each rank its own


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_comparison_runs_one_recipe_after_another_in_two_processes(tmp_path):
    output = launched(
        *several_processes(),
        *("recipes/experiments.py", "--output_dir", str(tmp_path / "all")),
        *("--config", "recipes/configs/experiments/smoke.yaml", "--seeds", "1"),
    )
    assert output.count("Using 1 CPU threads in each of 2 processes.") == 3  # the comparison, and each of its runs
    assert f"Comparison: {tmp_path / 'all' / 'report.html'}" in output
