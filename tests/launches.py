"""Commands as a user starts them, in one process or several."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TWO_CPU_PROCESSES = ROOT / "recipes" / "accelerate" / "two_cpu_processes.yaml"


def several_processes(num_processes: int = 2) -> list[str]:
    """What stands between `python` and a script to run it in this many processes, which meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Without the file's distributed type, accelerate starts one process on a CPU whatever number it is given.
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(TWO_CPU_PROCESSES)]
    return [*launcher, "--num_processes", str(num_processes), "--main_process_port", str(port)]


def run_python(*command: str, limit: float = 560) -> tuple[int, str]:
    """Exit status and output of `python` with these arguments, in the root of the checkout.

    After `limit` seconds it is ended, with what it launched, and the status is not 0.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            output, _ = started.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            started.terminate()  # at which a launcher ends its processes; they would outlive its being killed
            output, _ = started.communicate()
    return started.returncode, output


def launched(*command: str) -> str:
    """The output of a `python` command that succeeds."""
    status, output = run_python(*command)
    assert status == 0, output[-6000:]
    return output
