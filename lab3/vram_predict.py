"""What a server will hold on a card before it is started: weights, KV cache, what LMDeploy itself takes, the sum.

used = F + o + W + r (T - F - o - W - R) + e, in MiB. T is the card, F what others hold of it, W the weights, r
`--cache-max-entry-count`. o is taken before the cache is sized: the CUDA context, the libraries' kernels and the
engine's workspace (and what the driver keeps for itself). e is allocated after it: CUDA graphs, buffers of the first
requests. R is what the PyTorch engine subtracts before it takes its share, without holding it yet; TurboMind has none.
The bits of the KV cache are not in the formula: they change what the pool holds, not its size.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab3.capacity import BLOCK_TOKENS, slab_of, turbomind_tokens
from lab3.errors import UsageError
from lab3.models import ModelConfig, kv_bytes_per_token, model_tensors, read_config, resolve, weight_files
from lab3.nvml import MIB
from lab3.quantize import folder_bytes, predict_weight_bytes
from lab3.vram_constants import (
    LAB_VOCABULARY,
    WEIGHTS_4,
    Bound,
    Fit,
    Source,
    VramReading,
    check_request,
    fit,
    parse_reading,
    sources_of,
)

__all__ = ["Fit", "Prediction", "Range", "VramReading", "fit", "parse_reading", "predict", "predict_model_bytes"]


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
    foreign_mib: float
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
    foreign_mib: float = 0.0,
    lmdeploy: str | None = None,
) -> Prediction:
    """What a card of `total_mib` will show with a server of `model`, or of `weights_mib` of weights, on it.

    `foreign_mib` is what other processes hold of the card and go on holding; it counts in `used`. `lmdeploy` is the
    version, by default the installed one. `model` is a folder (its config.json is enough) or what
    `lab3.models.resolve` takes. A version or engine without constants of its own gets the span of the known ones.
    Raises UsageError for values out of range, a model quantized by anything but AWQ, and one that does not fit.
    """
    lmdeploy = _installed_lmdeploy() if lmdeploy is None else lmdeploy
    version = _check_version(lmdeploy)
    check_request(total_mib=total_mib, ratio=ratio, kv_bits=kv_bits, engine=engine)
    if not 0 <= foreign_mib < total_mib:  # also for NaN
        raise UsageError(
            f"{foreign_mib:g} MiB that others hold", why=f"the card has {total_mib:g}", todo="pass less, or 0 for none"
        )
    if (weights_mib is None) == (model is None):
        raise UsageError("weights by size or by model", why="one of the two must be given", todo="pass one of them")
    config: ModelConfig | None = None
    disk_mib: float | None = None
    if model is not None:
        config, weights_mib, disk_mib = _read_model(model)
    if weights_mib is None or not weights_mib > 0:
        raise UsageError(f"weights of {weights_mib:g} MiB", why="a model takes memory", todo="pass MiB above 0")

    vocabulary = config.vocab_size if config else LAB_VOCABULARY
    sources = sources_of(engine, version, config)
    bounds = [source.bound(vocabulary) for source in sources]
    left_mib = total_mib - foreign_mib
    outcomes = [bound.outcome(total_mib=left_mib, weights_mib=weights_mib, ratio=ratio) for bound in bounds]
    if min(used for used, _ in outcomes) > left_mib:
        raise _does_not_fit(
            bounds, total_mib=total_mib, foreign_mib=foreign_mib, weights_mib=weights_mib, ratio=ratio, config=config
        )
    pool = Range(min(pool for _, pool in outcomes), max(pool for _, pool in outcomes))
    bytes_per_token = kv_bytes_per_token(config, kv_bits) if config else None
    most = max(used for used, _ in outcomes)
    return Prediction(
        used=Range(foreign_mib + min(used for used, _ in outcomes), foreign_mib + min(most, left_mib)),
        kv_pool=pool,
        kv_tokens=None if bytes_per_token is None else _tokens(pool, bytes_per_token, sources),
        weights_mib=weights_mib,
        disk_mib=disk_mib,
        kv_bytes_per_token=bytes_per_token,
        total_mib=total_mib,
        foreign_mib=foreign_mib,
        ratio=ratio,
        kv_bits=kv_bits,
        engine=engine,
        lmdeploy=lmdeploy,
        basis="; ".join(source.told() for source in sources),
        notes=tuple(_notes(sources, config, risky=most > left_mib)),
    )


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


def _tokens(pool: Range, bytes_per_token: int, sources: Sequence[Source]) -> Range:
    """Whole blocks; in slabs where TurboMind is known to have them, and either way where it is not known."""
    found = []
    for mib in (pool.low, pool.high):
        if any(not source.slabs for source in sources):
            found.append(int(mib * MIB / bytes_per_token) // BLOCK_TOKENS * BLOCK_TOKENS)
        if any(source.slabs for source in sources):
            found.append(turbomind_tokens(mib * MIB, slab_of(bytes_per_token * BLOCK_TOKENS)))
    return Range(min(found), max(found))


def _notes(sources: Sequence[Source], config: ModelConfig | None, *, risky: bool) -> list[str]:
    notes = []
    if len(sources) > 1:
        notes.append("this engine and version were never read: the range spans those that were, and may be left")
    if config is None and any(source.engine == "pytorch" for source in sources):
        notes.append(
            f"what the PyTorch engine takes is that of {WEIGHTS_4} weights and a vocabulary of {LAB_VOCABULARY}; "
            "--model tells"
        )
    if risky:
        notes.append("it may not fit: with the larger constants memory runs out")
    return notes


def _does_not_fit(
    bounds: Sequence[Bound],
    *,
    total_mib: float,
    foreign_mib: float,
    weights_mib: float,
    ratio: float,
    config: ModelConfig | None,
) -> UsageError:
    most = max(total_mib - foreign_mib - bound.before_mib - bound.after_mib / (1 - ratio) for bound in bounds)
    room = f"at ratio {ratio:g} at most {most:.0f} MiB of weights fit" if most > 0 else "no model fits on such a card"
    todo = "use a larger card, a smaller model or a lower ratio"
    beside = ""
    if foreign_mib:
        beside = f", of which others hold {foreign_mib:g}"
        todo += ", or end what holds the card (`lab3 doctor` names it)"
    if config is not None and config.quantization is None:
        packed = predict_weight_bytes(config, group_size=128) / MIB
        if packed <= most:
            todo = f"quantize it: W4A16 takes about {packed:.0f} MiB, which fits"
    return UsageError(
        f"{weights_mib:.0f} MiB of weights do not fit on a card of {total_mib:g} MiB{beside}",
        why=f"beside the weights LMDeploy needs memory of its own: {room}",
        todo=todo,
    )


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
