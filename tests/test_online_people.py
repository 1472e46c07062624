"""Labels from people in another process while PPO runs, and a run that is killed while it waits for them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from online_runs import SCHEDULE, wait_until

pytest_plugins = "online_fixtures"


def started(*arguments) -> subprocess.Popen:
    script = Path(__file__).parent / "online_with_people.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_people_answer_in_another_process_and_a_kill_while_waiting_loses_nothing(folder):
    """The first sitting gives labels for one update; the run waits for more, is killed, and goes on with a second."""
    first = SCHEDULE.labels_before(4) - 1
    run = started("run", folder)
    wait_until(lambda: (folder / "labels.db").exists())
    ended(started("answer", folder, first))
    wait_until(lambda: (folder / "run" / "checkpoint-2" / "trainer_state.json").exists())
    labels = folder / "online" / "labels.jsonl"
    wait_until(lambda: len(labels.read_text().splitlines()) == first)
    assert run.poll() is None  # it waits
    assert not (folder / "run" / "checkpoint-4").exists()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = labels.read_text()

    run = started("run", folder)
    ended(started("answer", folder, SCHEDULE.labels_before(20) - first))
    ended(run)
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 12
    assert all(there >= int(wanted) for wanted, there in result["labels"].items()) and len(result["labels"]) == 6
    assert labels.read_text().startswith(before)
    numbers = [json.loads(line)["number"] for line in labels.read_text().splitlines()]
    assert len(numbers) == len(set(numbers)) == SCHEDULE.labels_before(20)
