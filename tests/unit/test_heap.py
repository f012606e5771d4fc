"""What is freed stays with the process: the kernel is not asked for it again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# A process of its own, for it stays changed. Prints how many pages were new to it in ten rounds.
USES_64_MIB_TEN_TIMES = """
import ctypes, json, resource, sys
from lab3.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def use():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def new_pages(how: str) -> int:
    script = [sys.executable, "-c", USES_64_MIB_TEN_TIMES, how]
    return int(json.loads(subprocess.run(script, capture_output=True, text=True, check=True, timeout=60).stdout))


def test_large_blocks_are_new_to_the_process_once() -> None:
    if new_pages("as ever") < 1000:
        pytest.skip("this C library keeps them by itself")
    assert new_pages("kept") < 100


def test_where_malloc_cannot_be_told_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab3 import heap

    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    heap.keep_freed_memory()
