"""How many cores an operator takes: all of them only where waking the others is worth it.

Waking OpenMP's sleeping threads (`lab3.threads`) takes tens of microseconds, and a decoding step of a small model is a
thousand operators of a few microseconds each.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

ALL = torch.get_num_threads()
# Multiplications from which a second thread gains: measured on two cores, where 2**23 of them take 0.2 to 1 ms.
_WORTH_WAKING = 2**23


def take(multiplications: int) -> None:
    """Let torch compute what comes next in this thread on one core, or on all for so many multiplications."""
    torch.set_num_threads(ALL if multiplications >= _WORTH_WAKING else 1)


def in_parts(size: int, multiplications: int, compute: Callable[[int, int], None]) -> None:
    """`compute(first, last)` for the ranges that `size` is cut into, one for each core that is worth it, at once.

    `compute` lets go of Python's lock. What it raises is raised here.
    """
    parts = ALL if multiplications >= _WORTH_WAKING else 1
    bounds = [size * part // parts for part in range(parts + 1)]
    others = [_pool().submit(compute, *ends) for ends in pairwise(bounds[1:])]
    compute(*bounds[:2])
    for other in others:
        other.result()


def together(compute: Callable[[], None]) -> None:
    """`compute` on every core at once, in this thread and in as many others.

    For work that the threads divide among themselves as they come, and that is done when one of them is: those that
    have not come by then are not waited for.
    """
    helpers = [_pool().submit(compute) for _ in range(ALL - 1)]
    try:
        compute()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, ALL - 1), thread_name_prefix="lab3-cpu")
