"""The figures of one lab, one by one, for whoever draws them over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab3.evidence import Evidence


@dataclass(frozen=True)
class Metric:
    """A figure with its unit, such as "bytes", "MiB", "s", "tokens", "1" for a plain number."""

    name: str
    value: float
    unit: str

    def __str__(self) -> str:
        return (
            f"{self.name} {self.value:g} {self.unit}"
            if self.value != int(self.value)
            else (f"{self.name} {int(self.value)} {self.unit}")
        )


_QUANTIZATION = {
    "weight_bytes_before": "bytes",
    "weight_bytes_after": "bytes",
    "predicted_weight_bytes": "bytes",
    "folder_bytes_before": "bytes",
    "folder_bytes_after": "bytes",
    "perplexity_before": "1",
    "perplexity_after": "1",
    "perplexity_kv_int4": "1",
    "seconds": "s",
}
_SERVER = {"used_mib": "MiB", "total_mib": "MiB", "kv_tokens": "tokens", "startup_seconds": "s"}
_CHAT = {"ttft_s": "s", "tokens_per_second": "tokens/s", "prompt_tokens": "tokens", "completion_tokens": "tokens"}


def metrics(evidence: Evidence) -> list[Metric]:
    """Every figure that the evidence has."""
    found = _of("quantization", evidence.quantization, _QUANTIZATION)
    found += _of("baseline", evidence.baseline, _SERVER)
    found += _of("quantized", evidence.quantized, _SERVER)
    found += _of("chat", evidence.chat, _CHAT)
    if evidence.samples is not None:
        found.append(Metric("samples.right", evidence.samples.right, "1"))
        found.append(Metric("samples.asked", len(evidence.samples.outcomes), "1"))
    return found


def _of(section: str, facts: Any, units: dict[str, str]) -> list[Metric]:
    told = [(name, getattr(facts, name, None), unit) for name, unit in units.items()]
    return [Metric(f"{section}.{name}", value, unit) for name, value, unit in told if value is not None]
