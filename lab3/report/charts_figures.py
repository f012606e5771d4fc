"""Figures of the evidence as people read them, and what is compared with what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lab3.errors import Lab3Error
from lab3.evidence import Evidence, ServerFacts
from lab3.report.charts_memory import Limit
from lab3.report.html_words import Words


@dataclass(frozen=True)
class Server:
    """One of the lab's two servers."""

    when: Literal["before", "after"]
    facts: ServerFacts


def servers(evidence: Evidence) -> list[Server]:
    """Those that were measured."""
    found: list[Server] = []
    if evidence.baseline is not None:
        found.append(Server("before", evidence.baseline))
    if evidence.quantized is not None:
        found.append(Server("after", evidence.quantized))
    return found


def ceiling(evidence: Evidence, server: Server) -> Limit | None:
    """What the server was bound to hold at most, in MiB, by lab3.vram_predict; None where it has no constants."""
    from lab3.vram_predict import predict

    q, facts = evidence.quantization, server.facts
    if facts.engine not in ("turbomind", "pytorch") or q is None:
        return None
    weights = q.weight_bytes_before if server.when == "before" else q.weight_bytes_after
    try:
        told = predict(
            total_mib=facts.total_mib,
            ratio=facts.cache_ratio,
            kv_bits=facts.kv_bits,
            engine=facts.engine,
            weights_mib=weights / 2**20,
            foreign_mib=facts.foreign_mib,
            lmdeploy=evidence.environment.get("lmdeploy", ""),
        )
    except Lab3Error:  # a version, a card or a ratio that nothing is known about
        return None
    return Limit(low=told.used.low, high=told.used.high, label="")


def memory_name(evidence: Evidence, words: Words) -> str:
    """What kind of memory it is."""
    on_cpu = all(each.facts.engine == "cpu" for each in servers(evidence))
    return words("cpu_memory" if on_cpu and servers(evidence) else "gpu_memory")


def grouped(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def megabytes(value: int) -> str:
    """Bytes as MB, that is 1,000,000 bytes, or as kB where that says more."""
    return f"{value / 1e6:,.1f} MB" if abs(value) >= 100_000 else f"{value / 1e3:,.1f} kB"


def rounded_up(size: int) -> str:
    """Bytes as `du -h` shows them: rounded up, with one digit after the point below ten."""
    power = max(1, min(4, (max(size, 1).bit_length() - 1) // 10))
    value = size / 1024**power
    tenths = math.ceil(value * 10)
    return (f"{tenths / 10:.1f}" if tenths < 100 else str(math.ceil(value))) + "KMGT"[power - 1]


def figure(value: float, digits: int) -> str:
    """With at most so many digits after the point."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "NaN"
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def change(before: float, after: float) -> str:
    """As a percentage, "" where there is nothing to compare with."""
    if not before or not (math.isfinite(before) and math.isfinite(after)):
        return ""
    share = after / before - 1
    return f"{share:+.1%}" if abs(share) < 10 else f"{after / before:,.1f}x"


def ratio_of(before: float | None, after: float) -> str:
    """`change` where the first figure may be missing."""
    return "" if before is None else change(before, after)
