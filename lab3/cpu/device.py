"""The device: what LMDeploy's engine asks of `torch.cuda`, answered by a CPU with a memory budget."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from lab3.errors import UsageError

MEMORY_VARIABLE = "LAB3_CPU_MEMORY"
_DEFAULT_SHARE = 0.25
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def memory_budget() -> int:
    """Bytes that play the card's total memory.

    `LAB3_CPU_MEMORY`, else a quarter of what the machine (or its cgroup) has: the engine fills its share with the KV
    pool, and other programs live here too.

    Raises:
        UsageError: `LAB3_CPU_MEMORY` is not a size, or not more than zero.
    """
    text = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not text:
        return int(_physical_memory() * _DEFAULT_SHARE)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", text, flags=re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size <= 0:
        raise UsageError(
            f"{MEMORY_VARIABLE}={text!r} is not a memory size.",
            todo=f"Write bytes or a binary unit, for instance {MEMORY_VARIABLE}=2GiB.",
        )
    return size


def memory_info() -> tuple[int, int]:
    """(free, total) bytes of the device, as `torch.cuda.mem_get_info` gives them.

    Used is the resident memory of this process: the weights and the KV pool live in it, and the interpreter and the
    libraries take the place of the CUDA context.
    """
    total = memory_budget()
    return max(0, total - psutil.Process().memory_info().rss), total


def release_free_memory() -> None:
    """Give freed memory back to the system, as `torch.cuda.empty_cache` does: glibc keeps it otherwise."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no glibc here: nothing to give back
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _physical_memory() -> int:
    total = int(psutil.virtual_memory().total)
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit_file).read_text()))
    return total


class Stream:
    """A queue of work that is always empty: on a CPU an operator has run when it returns."""

    def synchronize(self) -> None: ...
    def wait_event(self, event: Event) -> None: ...
    def wait_stream(self, stream: Stream) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True


class Event:
    """A mark in a stream, always reached."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Stream | None = None) -> None: ...
    def wait(self, stream: Stream | None = None) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def _stream(_: Stream | None) -> Iterator[None]:
    yield


_default_stream = Stream()

cuda = SimpleNamespace(
    Stream=Stream,
    Event=Event,
    stream=_stream,
    current_stream=lambda *_: _default_stream,
    default_stream=lambda *_: _default_stream,
    synchronize=lambda *_: None,
    empty_cache=release_free_memory,
    mem_get_info=lambda *_: memory_info(),
    current_device=lambda: "cpu",
    device_count=lambda: 1,
    is_available=lambda: False,
)


class TorchOnCpu:
    """The module `torch` as one LMDeploy module sees it: all of torch, with `torch.cuda` replaced by `cuda` above."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)
