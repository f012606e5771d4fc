"""What LMDeploy takes of a card for itself: constants that are solved from readings of servers, not written down.

Their formula is `lab3.vram_predict`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab3.errors import UsageError
from lab3.models import ModelConfig
from lab3.nvml import MIB

ENGINES = ("turbomind", "pytorch")
KV_BITS = (16, 8, 4)  # LMDeploy's --quant-policy 0, 8 and 4
WEIGHTS_4, WEIGHTS_16 = "W4A16", "16-bit"
LAB_VOCABULARY = 92544  # InternLM2.5, the lab's model, and that of the readings below


@dataclass(frozen=True)
class VramReading:
    """A server on a card: its size, the model's weights, the cache ratio, and what nvidia-smi showed; MiB.

    `pool_mib` is the KV cache, where the server told how many blocks it holds.
    """

    total_mib: float
    weights_mib: float
    ratio: float
    used_mib: float
    pool_mib: float | None = None


@dataclass(frozen=True)
class Fit:
    """o and e of the formula, in MiB, and by how much the readings they were solved from miss it at most."""

    before_cache_mib: float
    after_cache_mib: float
    worst_error_mib: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


def fit(readings: Sequence[VramReading], *, engine: str = "turbomind", vocab_size: int = LAB_VOCABULARY) -> Fit:
    """o and e from servers of different cache ratio, by least squares; two on one card are enough.

    The formula is a straight line in them: used - W - r (T - W - R) = (1 - r) o + e. `engine` and `vocab_size` give R.
    Raises UsageError for readings that cannot be, and for fewer than two different ratios.
    """
    for reading in readings:
        check_request(total_mib=reading.total_mib, ratio=reading.ratio, kv_bits=16, engine=engine)
        if not 0 < reading.weights_mib < reading.used_mib <= reading.total_mib:  # also false for NaN
            raise UsageError(
                f"the reading {reading.total_mib:g},{reading.weights_mib:g},{reading.ratio:g},{reading.used_mib:g}",
                why="weights must be above 0, used more than the weights, and not more than the card's total",
                todo="give each reading as TOTAL,WEIGHTS,RATIO,USED in MiB",
            )
    if len({reading.ratio for reading in readings}) < 2:
        raise UsageError(
            f"{len(readings)} reading(s) of {len({reading.ratio for reading in readings})} cache ratio(s)",
            why="two constants are sought, and servers of one ratio tell only the sum (1 - r) o + e",
            todo="start the server once more with another --cache-max-entry-count and add its reading",
        )
    reserve = _reserve_mib(engine, vocab_size)
    points = [(1 - reading.ratio, _unexplained(reading, reserve)) for reading in readings]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    after = mean_y - slope * mean_x
    return Fit(slope, after, max(abs(slope * x + after - y) for x, y in points))


def parse_reading(text: str) -> VramReading:
    """A reading from "TOTAL,WEIGHTS,RATIO,USED"; raises UsageError for anything else."""
    try:
        total, weights, ratio, used = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"the reading {text!r}", why="it is not four numbers with commas", todo="give TOTAL,WEIGHTS,RATIO,USED"
        ) from error
    return VramReading(total, weights, ratio, used)


@dataclass(frozen=True)
class Bound:
    """One pair of constants that the readings allow."""

    before_mib: float
    after_mib: float
    reserve_mib: float

    def outcome(self, *, total_mib: float, weights_mib: float, ratio: float) -> tuple[float, float]:
        """(used, pool) of a server, in MiB, by the formula of this module; used may be more than the card has."""
        free, reserve = total_mib - self.before_mib - weights_mib, self.reserve_mib
        while 0 < free <= reserve:  # the engine halves its prefill until some cache is left
            reserve /= 2
        pool = ratio * max(0.0, free - reserve)
        return self.before_mib + weights_mib + pool + self.after_mib, pool


@dataclass(frozen=True)
class Source:
    """The readings of one engine and version; the constants are solved from them, not written down.

    Version and card came together: what a newer LMDeploy takes more and what an H100 takes more cannot be told apart.
    """

    engine: str
    version: tuple[int, int]
    card: str
    readings: tuple[VramReading, ...]
    weights: str = ""  # of one kind alone, WEIGHTS_4 or WEIGHTS_16

    @property
    def slabs(self) -> bool:
        """Whether the KV cache comes in TurboMind's slabs, which 0.6 had not."""
        return self.engine == "turbomind" and self.version >= (0, 18)

    def bound(self, vocab_size: int) -> Bound:
        """The pair that the readings give: two ratios give two equations, and so does one reading with its pool."""
        reserve = _reserve_mib(self.engine, vocab_size)
        if len(self.readings) > 1:
            solved = fit(self.readings, engine=self.engine)
            return Bound(solved.before_cache_mib, solved.after_cache_mib, reserve)
        (reading,) = self.readings
        pool = reading.pool_mib or 0.0
        free = pool / reading.ratio + _reserve_mib(self.engine, LAB_VOCABULARY)
        before = reading.total_mib - reading.weights_mib - free
        return Bound(before, reading.used_mib - before - reading.weights_mib - pool, reserve)

    def told(self) -> str:
        """Engine, version and card, for people."""
        kind = f" with {self.weights} weights" if self.weights else ""
        return f"{self.engine} of LMDeploy {self.version[0]}.{self.version[1]}{kind} on {self.card}"


# InternLM2.5-1.8B, 3603 MiB of weights in bf16 and 1471 in W4A16. TurboMind: two servers of different ratio on one
# card, which give o = 1041, e = 34 and o = 1554, e = 168 MiB. The PyTorch engine takes more with AWQ weights, so each
# kind has a server of its own, whose blocks were counted: o = 2369, e = -36 in W4A16, o = 1219, e = -145 in bf16.
# There o is what CUDA calls taken, with the driver's reserve of 480 MiB that nvidia-smi leaves out: so e is below 0.
SOURCES = (
    Source(
        "turbomind", (0, 6), "A100 slices", (VramReading(24566, 3603, 0.8, 20616), VramReading(24566, 1471, 0.4, 11368))
    ),
    Source(
        "turbomind", (0, 18), "an H100", (VramReading(81559, 3603, 0.8, 66447), VramReading(81559, 1471, 0.4, 34607))
    ),
    Source("pytorch", (0, 18), "an H100", (VramReading(80940, 1471.3, 0.4, 33921, 30117),), weights=WEIGHTS_4),
    Source("pytorch", (0, 18), "an H100", (VramReading(80940, 3603.2, 0.8, 64125, 59448),), weights=WEIGHTS_16),
)


def sources_of(engine: str, version: tuple[int, int], config: ModelConfig | None) -> list[Source]:
    """The readings of just this engine, version and kind of weights; else all of the engine, if several versions of it
    were read; else all there are.

    One version alone says nothing of how the constants move between versions, so other engines' join it.
    """
    own = [source for source in SOURCES if source.engine == engine]
    kind = WEIGHTS_16 if config is not None and config.quantization is None else WEIGHTS_4
    exact = [source for source in own if source.version == version and source.weights in ("", kind)]
    return exact or (own if len({source.version for source in own}) > 1 else list(SOURCES))


def _unexplained(reading: VramReading, reserve_mib: float) -> float:
    """What of `used` is neither weights nor a share of what they leave: (1 - r) o + e."""
    left = reading.total_mib - reading.weights_mib - reserve_mib
    return reading.used_mib - reading.weights_mib - reading.ratio * left


def _reserve_mib(engine: str, vocab_size: int) -> float:
    """R: 16-bit logits for a prefill of 8192 tokens and twice 1024 sequences, LMDeploy's defaults on an H100.

    Source: `_get_runtime_size` in lmdeploy/pytorch/engine/executor/base.py (0.18); other cards have fewer sequences,
    which takes off up to 18%.
    """
    return (8192 + 2 * 1024) * vocab_size * 2 / MIB if engine == "pytorch" else 0.0


def check_request(*, total_mib: float, ratio: float, kv_bits: int, engine: str) -> None:
    if not (math.isfinite(total_mib) and total_mib > 0):
        raise UsageError(f"a card of {total_mib:g} MiB", why="it has memory", todo="pass its total in MiB, above 0")
    if not 0 < ratio < 1:
        raise UsageError(
            f"cache ratio {ratio:g}",
            why="it is a share of the memory free after the weights, and LMDeploy takes neither none nor all of it",
            todo="pass a number above 0 and below 1, such as 0.8 or 0.4",
        )
    if kv_bits not in KV_BITS:
        raise UsageError(f"a KV cache of {kv_bits} bits", why="LMDeploy has 16, 8 and 4", todo="pass one of them")
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r}", why="LMDeploy has two on a GPU", todo=f"pass {' or '.join(ENGINES)}")
