"""How many cores an operator takes: all of them only where waking the others is worth it.

Waking OpenMP's sleeping threads (`lab3.threads`) takes tens of microseconds, and a decoding step of a small model is a
thousand operators of a few microseconds each.
"""

from __future__ import annotations

import torch

_all = torch.get_num_threads()
# Multiplications from which a second thread gains: measured on two cores, where 2**23 of them take 0.2 to 1 ms.
_WORTH_WAKING = 2**23


def take(multiplications: int) -> None:
    """Let torch compute what comes next in this thread on one core, or on all for so many multiplications."""
    torch.set_num_threads(_all if multiplications >= _WORTH_WAKING else 1)
