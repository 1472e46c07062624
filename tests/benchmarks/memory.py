"""Resident memory of this process, and functions run where nothing else has been allocated, or on several ranks."""

import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def resident(key: str) -> int:
    """Bytes of `VmRSS` (at present) or `VmHWM` (at most so far)."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def in_own_process(function: Callable, *args: Any) -> Any:
    """`function(*args)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def in_ranks(count: int, function: Callable, *args: Any) -> Any:
    """`function(*args)` in `count` fresh processes that form a process group; what the first returns."""
    if count == 1:
        return in_own_process(function, *args)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_as_rank, rank, count, port, function, args) for rank in range(count)]
        first, *_ = [rank.result() for rank in ranks]
    return first


def _as_rank(rank: int, count: int, port: int, function: Callable, args: tuple) -> Any:
    """What `accelerate launch --cpu --num_processes count` tells a process."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    return function(*args)
