"""How many tokens a KV cache holds: as the server itself tells, and how TurboMind cuts a pool of memory into blocks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lab3.nvml import MIB

BLOCK_TOKENS = 64  # both engines hand out the cache in blocks of that many tokens
PAGE_BYTES = 32 * MIB
_MOST_SLAB_BYTES = 1024 * MIB
_USED_SHARE = 0.95


@dataclass(frozen=True)
class Slab:
    """What TurboMind takes from its pool at a time: `bytes`, which hold `blocks` of the KV cache."""

    bytes: int
    blocks: int


def slab_of(block_bytes: int) -> Slab:
    """TurboMind's slab for KV blocks of that size.

    The pages of 32 MiB that hold a block, a power of two of them, doubled until 95% of the slab is used, up to 1 GiB.
    Source: `SlabAllocator` in src/turbomind/memory/slab.h and `MemoryState` in object.cc (LMDeploy 0.18).
    """
    pages = 1 << (-(-block_bytes // PAGE_BYTES) - 1).bit_length()
    size = pages * PAGE_BYTES
    while size // block_bytes * block_bytes / size < _USED_SHARE and size * 2 <= _MOST_SLAB_BYTES:
        size *= 2
    return Slab(size, size // block_bytes)


def turbomind_tokens(pool_bytes: float, slab: Slab) -> int:
    """Tokens that a pool of that size holds: whole slabs of whole pages."""
    pages = int(pool_bytes // PAGE_BYTES)
    return pages // (slab.bytes // PAGE_BYTES) * slab.blocks * BLOCK_TOKENS


def kv_tokens(base_url: str, log_path: Path | None = None) -> int | None:
    """Tokens that the server's KV cache holds, as it tells itself; None if it does not.

    LMDeploy's PyTorch engine tells blocks and tokens in a block over /distserve/engine_info. TurboMind leaves the
    blocks out there, and writes its pool and its slabs into the log (`log_path`).
    """
    told = _from_engine_info(base_url)
    if told is None and log_path is not None and log_path.is_file():
        return _from_log(log_path.read_text(encoding="utf-8", errors="replace"))
    return told


def _from_engine_info(base_url: str) -> int | None:
    import requests

    try:
        told = requests.get(base_url.removesuffix("/v1") + "/distserve/engine_info", timeout=10).json()
        info = json.loads(told) if isinstance(told, str) else told  # LMDeploy sends JSON within JSON
        return int(info["num_gpu_blocks"]) * int(info["block_size"]) or None
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None


# "Object cache budget: 15960.84 MB from free 79804.19 MB and ratio 0.200"; a MB is 2**20 bytes there.
_BUDGET = re.compile(r"Object cache budget: (?P<mib>[\d.]+) MB")
# "slab_size 33554432, object_size 1474560, object_count 22, ratio 0.967"
_SLAB = re.compile(r"slab_size (?P<bytes>\d+), object_size \d+, object_count (?P<blocks>\d+)")


def _from_log(text: str) -> int | None:
    budget, slab = _BUDGET.search(text), _SLAB.search(text)
    if budget is None or slab is None:
        return None
    return turbomind_tokens(float(budget["mib"]) * MIB, Slab(int(slab["bytes"]), int(slab["blocks"]))) or None
