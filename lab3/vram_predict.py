"""What a server will hold on a card before it is started: weights, KV cache, what LMDeploy itself takes, the sum.

used = o + W + r (T - o - W - R) + e, in MiB. T is the card, W the weights, r `--cache-max-entry-count`. o is taken
before the cache is sized: the CUDA context, the libraries' kernels and the engine's workspace (and what the driver
keeps for itself). e is allocated after it: CUDA graphs, buffers of the first requests. R is what the PyTorch engine
subtracts before it takes its share, without holding it yet; TurboMind has none. The bits of the KV cache are not in
the formula: they change what the pool holds, not its size.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.models import ModelConfig, kv_bytes_per_token, model_tensors, read_config, resolve, weight_files
from lab3.nvml import MIB
from lab3.quantize import folder_bytes, predict_weight_bytes

__all__ = ["Fit", "Prediction", "Range", "VramReading", "fit", "parse_reading", "predict", "predict_model_bytes"]

ENGINES = ("turbomind", "pytorch")
KV_BITS = (16, 8, 4)  # LMDeploy's --quant-policy 0, 8 and 4
BLOCK_TOKENS = 64  # both engines hand out the cache in blocks of that many tokens
LAB_VOCABULARY = 92544  # InternLM2.5, the lab's model, and that of the readings below


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; a `point` where they are the same to within rounding, else None."""

    low: float
    high: float

    @property
    def point(self) -> float | None:
        return self.high if self.high - self.low < 0.5 else None


@dataclass(frozen=True)
class Prediction:
    """What a server will hold. Ranges are in MiB, `kv_tokens` in tokens (whole blocks; None without a model).

    `disk_mib` is the folder as `du` counts it, of a config without weights the bytes of its tensors, None without a
    model. `basis` tells which readings the constants come from; `notes` what to know before believing the figures.
    """

    used: Range
    kv_pool: Range
    kv_tokens: Range | None
    weights_mib: float
    disk_mib: float | None
    kv_bytes_per_token: int | None
    total_mib: float
    ratio: float
    kv_bits: int
    engine: str
    lmdeploy: str
    basis: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `used_mib` is None where only `used_mib_low` and `used_mib_high` are known; the others alike."""
        tokens = _flat("kv_tokens", self.kv_tokens, digits=None)
        rest = {name: value for name, value in asdict(self).items() if name not in ("used", "kv_pool", "kv_tokens")}
        rounded = {name: round(value, 1) for name, value in rest.items() if name.endswith("_mib") and value is not None}
        return {**_flat("used_mib", self.used), **_flat("kv_pool_mib", self.kv_pool), **tokens, **rest, **rounded}


def predict(
    *,
    total_mib: float,
    ratio: float,
    kv_bits: int,
    engine: str,
    weights_mib: float | None = None,
    model: str | Path | None = None,
    lmdeploy: str | None = None,
) -> Prediction:
    """What a server of `model`, or of `weights_mib` of weights, will hold on a card of `total_mib`.

    `lmdeploy` is the version, by default the installed one. `model` is a folder (its config.json is enough) or what
    `lab3.models.resolve` takes. A version or engine without constants of its own gets the span of the known ones.
    Raises UsageError for values out of range, a model quantized by anything but AWQ, and one that does not fit.
    """
    lmdeploy = _installed_lmdeploy() if lmdeploy is None else lmdeploy
    version = _check_version(lmdeploy)
    _check_request(total_mib=total_mib, ratio=ratio, kv_bits=kv_bits, engine=engine)
    if (weights_mib is None) == (model is None):
        raise UsageError("weights by size or by model", why="one of the two must be given", todo="pass one of them")
    config: ModelConfig | None = None
    disk_mib: float | None = None
    if model is not None:
        config, weights_mib, disk_mib = _read_model(model)
    if weights_mib is None or not weights_mib > 0:
        raise UsageError(f"weights of {weights_mib:g} MiB", why="a model takes memory", todo="pass MiB above 0")

    vocabulary = config.vocab_size if config else LAB_VOCABULARY
    sources = _sources(engine, version)
    bounds = [bound for source in sources for bound in source.bounds(vocabulary)]
    outcomes = [bound.outcome(total_mib=total_mib, weights_mib=weights_mib, ratio=ratio) for bound in bounds]
    if min(used for used, _ in outcomes) > total_mib:
        raise _does_not_fit(bounds, total_mib=total_mib, weights_mib=weights_mib, ratio=ratio, config=config)
    pool = Range(min(pool for _, pool in outcomes), max(pool for _, pool in outcomes))
    bytes_per_token = kv_bytes_per_token(config, kv_bits) if config else None
    most = max(used for used, _ in outcomes)
    return Prediction(
        used=Range(min(used for used, _ in outcomes), min(most, total_mib)),
        kv_pool=pool,
        kv_tokens=None if bytes_per_token is None else _tokens(pool, bytes_per_token),
        weights_mib=weights_mib,
        disk_mib=disk_mib,
        kv_bytes_per_token=bytes_per_token,
        total_mib=total_mib,
        ratio=ratio,
        kv_bits=kv_bits,
        engine=engine,
        lmdeploy=lmdeploy,
        basis="; ".join(source.told() for source in sources),
        notes=tuple(_notes(sources, config, risky=most > total_mib)),
    )


# ---------------------------------------------------------------------------------------------------- the constants


@dataclass(frozen=True)
class VramReading:
    """A server on a card: its size, the model's weights, the cache ratio, and what nvidia-smi showed; MiB."""

    total_mib: float
    weights_mib: float
    ratio: float
    used_mib: float


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
        _check_request(total_mib=reading.total_mib, ratio=reading.ratio, kv_bits=16, engine=engine)
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
class _Bound:
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
class _Source:
    """The readings of one engine and version; the constants are solved from them, not written down.

    Version and card came together: what a newer LMDeploy takes more and what an H100 takes more cannot be told apart.
    """

    engine: str
    version: tuple[int, int]
    card: str
    readings: tuple[VramReading, ...]

    def bounds(self, vocab_size: int) -> list[_Bound]:
        """The pair solved from readings of two ratios; from one reading the ends of the line of pairs that give it.

        Those ends are: nothing allocated after the cache, and nothing before it. `used` is linear in the pair, so its
        extremes are at the ends; at the reading's own ratio both give the same.
        """
        reserve = _reserve_mib(self.engine, vocab_size)
        if len(self.readings) > 1:
            solved = fit(self.readings, engine=self.engine)
            return [_Bound(solved.before_cache_mib, solved.after_cache_mib, reserve)]
        (reading,) = self.readings
        total = _unexplained(reading, _reserve_mib(self.engine, LAB_VOCABULARY))
        return [_Bound(total / (1 - reading.ratio), 0, reserve), _Bound(0, total, reserve)]

    def told(self) -> str:
        """Engine, version and card, for people."""
        return f"{self.engine} of LMDeploy {self.version[0]}.{self.version[1]} on {self.card}"


# InternLM2.5-1.8B, 3603 MiB of weights in bf16 and 1471 in W4A16: two servers of different ratio on one card where
# there are two. They give o = 1041, e = 34 and o = 1554, e = 168 MiB; for the PyTorch engine 0.6 o + e = 1292.
_SOURCES = (
    _Source(
        "turbomind", (0, 6), "A100 slices", (VramReading(24566, 3603, 0.8, 20616), VramReading(24566, 1471, 0.4, 11368))
    ),
    _Source(
        "turbomind", (0, 18), "an H100", (VramReading(81559, 3603, 0.8, 66447), VramReading(81559, 1471, 0.4, 34607))
    ),
    _Source("pytorch", (0, 18), "an H100", (VramReading(81559, 1471, 0.4, 34075),)),
)


def _sources(engine: str, version: tuple[int, int]) -> list[_Source]:
    """The readings of just this engine and version; else all of the engine, if it was read twice; else all there are.

    One version alone says nothing of how the constants move between versions, so other engines' join it.
    """
    own = [source for source in _SOURCES if source.engine == engine]
    exact = [source for source in own if source.version == version]
    return exact or (own if len(own) > 1 else list(_SOURCES))


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


# ------------------------------------------------------------------------------------------------------- the weights


def predict_model_bytes(config: ModelConfig) -> int:
    """Bytes of a dense decoder's weights, from its config: 2 for each parameter, or W4A16 as AWQ packs it.

    The 1.8B shape gives 3603.2 and 1471.4 MiB, the measured 3603 and 1471. Biases are left out. On disk names and
    shapes, the tokenizer and, where lab3 did not drop them, LMDeploy's calibration by-products come on top.
    Raises UsageError for a quantization that is not AWQ in 4 bits.
    """
    told = config.quantization
    if told is not None:
        _check_awq(told)
        return predict_weight_bytes(config, group_size=int(told.get("group_size") or 128))
    attention = 2 * config.hidden_size * config.head_dim * (config.heads + config.kv_heads)  # q and o, k and v
    mlp = 3 * config.hidden_size * config.intermediate_size  # gate, up and down
    tables = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    norms = (2 * config.layers + 1) * config.hidden_size
    return 2 * (config.layers * (attention + mlp) + tables + norms)


def _read_model(model: str | Path) -> tuple[ModelConfig, float, float]:
    """(config, weights on the GPU in MiB, size on disk in MiB)."""
    local = Path(model).expanduser()
    folder = local if (local / "config.json").is_file() else resolve(model)
    config = read_config(folder)
    if config.quantization is not None:
        _check_awq(config.quantization)
    files = weight_files(folder)
    # Engines compute in 16 bits, so float32 tensors shrink on their way to the card; packed integers stay.
    loaded = sum(tensor.size_bytes // (2 if tensor.dtype == "F32" else 1) for tensor in model_tensors(folder))
    weights = loaded or predict_model_bytes(config)
    return config, weights / MIB, (folder_bytes(folder) if files else weights) / MIB


def _check_awq(told: dict[str, Any]) -> None:
    method, bits = told.get("quant_method", "an unknown method"), told.get("bits", told.get("w_bit"))
    if method != "awq" or bits not in (4, None):
        raise UsageError(
            f"the model is quantized by {method}, {bits or '?'} bits",
            why="the sizes of AWQ in 4 bits are known here, as the lab makes it",
            todo="pass the fp16 or bf16 model, its W4A16 AWQ folder, or the size by --weights-mib",
        )


# ----------------------------------------------------------------------------------------------------------- helpers


def _tokens(pool: Range, bytes_per_token: int) -> Range:
    low, high = (int(mib * MIB / bytes_per_token) // BLOCK_TOKENS * BLOCK_TOKENS for mib in (pool.low, pool.high))
    return Range(low, high)


def _notes(sources: Sequence[_Source], config: ModelConfig | None, *, risky: bool) -> list[str]:
    notes = []
    if len(sources) > 1:
        notes.append("this engine and version were never read: the range spans those that were, and may be left")
    elif len(sources[0].readings) < 2:
        ratio = sources[0].readings[0].ratio
        notes.append(f"one reading, at ratio {ratio:g}: at others, and of the pool, there is a range")
    if config is None and any(source.engine == "pytorch" for source in sources):
        notes.append(f"what the PyTorch engine reserves is that of a vocabulary of {LAB_VOCABULARY}; --model tells")
    if risky:
        notes.append("it may not fit: with the larger constants memory runs out")
    return notes


def _does_not_fit(
    bounds: Sequence[_Bound], *, total_mib: float, weights_mib: float, ratio: float, config: ModelConfig | None
) -> UsageError:
    most = max(total_mib - bound.before_mib - bound.after_mib / (1 - ratio) for bound in bounds)
    room = f"at ratio {ratio:g} at most {most:.0f} MiB of weights fit" if most > 0 else "no model fits on such a card"
    todo = "use a larger card, a smaller model or a lower ratio"
    if config is not None and config.quantization is None:
        packed = predict_weight_bytes(config, group_size=128) / MIB
        if packed <= most:
            todo = f"quantize it: W4A16 takes about {packed:.0f} MiB, which fits"
    return UsageError(
        f"{weights_mib:.0f} MiB of weights do not fit on a card of {total_mib:g} MiB",
        why=f"beside the weights LMDeploy needs memory of its own: {room}",
        todo=todo,
    )


def _check_request(*, total_mib: float, ratio: float, kv_bits: int, engine: str) -> None:
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


def _check_version(text: str) -> tuple[int, int]:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    if match is None:
        raise UsageError(f"LMDeploy version {text!r}", why="it is not like 0.18.0", todo="pass such as --lmdeploy 0.18")
    return int(match[1]), int(match[2])


def _installed_lmdeploy() -> str:
    try:
        return importlib.metadata.version("lmdeploy")
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError(
            "LMDeploy is not installed here", why="its version picks the constants", todo="pass --lmdeploy VERSION"
        ) from error


def _flat(name: str, value: Range | None, *, digits: int | None = 1) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    point = None if value.point is None else round(value.point, digits)
    return {name: point, f"{name}_low": round(value.low, digits), f"{name}_high": round(value.high, digits)}
