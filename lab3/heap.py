"""Memory that a process frees and wants again at once stays with it."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE = 1 << 29


def keep_freed_memory() -> None:
    """From now on in this process, blocks of up to 512 MiB come from the heap, and what is freed stays in it.

    glibc gets blocks of over 32 MiB from the kernel and gives them back at once (mallopt(3)), and the kernel has to
    fill them with zeros the next time: for a neural network's activations, a tenth of all seconds. The process holds
    its peak then until it ends. Another C library, or a glibc that does not take such sizes, is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(_M_MMAP_THRESHOLD, _LARGE):
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)
