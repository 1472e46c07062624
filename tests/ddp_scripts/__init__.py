"""Scripts that the slow tests run in two processes, and how they are launched."""

import os
import subprocess
import sys
from pathlib import Path


def launch_two(script: str, *arguments: str) -> None:
    """Run a script of this folder in two CPU processes; a failure shows the end of its output.

    `accelerate launch --cpu --num_processes 2` starts one process, hence torch's launcher, which picks a free port.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).parent / script), *arguments]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]
