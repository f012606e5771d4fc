"""The weights in one piece of memory that the kernel maps with huge pages.

A decoding step reads every weight once. In pages of 4 KiB a processor looks up 28,000 addresses for the embedded
model's 115 MB, and what reads ahead stops at each page's end: from pages of 2 MiB answers come a tenth faster
(`bench/RESULTS.md`).
The KV cache stays in small pages: it is read here and there, and taking huge ones costs the kernel longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import torch
from torch import Tensor, nn

_APART = 64  # bytes; each tensor begins on a cache line of its own


def move_to_huge_pages(model: nn.Module) -> None:
    """Move the parameters and buffers of `model`, which are on the CPU, where the system has huge pages for the asking.

    They keep their values; what is shared stays shared. Where there are no huge pages nothing is moved.
    """
    found: dict[tuple[object, ...], list[Tensor]] = {}
    for each in (*model.parameters(), *model.buffers()):
        if each.numel() and each.is_contiguous():
            found.setdefault((each.data_ptr(), each.dtype, each.shape), []).append(each)
    if not found or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    size = sum(_rounded(first.nbytes) for first, *_ in found.values())
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    try:
        room.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return
    memory, start = torch.frombuffer(room, dtype=torch.uint8), 0
    for first, *others in found.values():
        place = memory[start : start + first.nbytes].view(first.dtype).view(first.shape).copy_(first.data)
        start += _rounded(first.nbytes)
        for tensor in (first, *others):
            tensor.data = place
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed until it is told to give it back
        ctypes.CDLL(None).malloc_trim(0)


def _rounded(size: int) -> int:
    return -(-size // _APART) * _APART
