"""Two runs next to each other: their figures, their verdicts, and what was different around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab3.report.charts import Bar, Chart, bar_chart
from lab3.report.charts_figures import change, figure, grouped
from lab3.report.html_page import render, save
from lab3.report.html_words import Language, Words
from lab3.report.metrics import metrics
from lab3.report.stored import Stored
from lab3.verdicts import Verdict


@dataclass(frozen=True)
class Figure:
    """A figure of both runs; None where one has none."""

    name: str
    unit: str
    a: float | None
    b: float | None

    @property
    def change(self) -> str:
        """From A to B, "" where it cannot be told."""
        if self.a is None or self.b is None:
            return ""
        return "=" if self.a == self.b else change(self.a, self.b)


@dataclass(frozen=True)
class Pair:
    """A check's verdicts in both runs."""

    a: Verdict | None
    b: Verdict | None

    @property
    def either(self) -> Verdict:
        found = self.b or self.a
        if found is None:
            raise ValueError("a pair of nothing")
        return found

    @property
    def same(self) -> bool:
        return self.a is not None and self.b is not None and self.a.status == self.b.status

    @property
    def worse(self) -> bool:
        """Whether A passes and B does not, in a check that decides."""
        passed = self.a is not None and self.a.status == "pass" and self.a.required
        return passed and self.b is not None and self.b.status != "pass"


@dataclass(frozen=True)
class Comparison:
    """All of it. `environment` holds (name, A's, B's)."""

    a: Stored
    b: Stored
    figures: tuple[Figure, ...]
    pairs: tuple[Pair, ...]
    environment: tuple[tuple[str, str, str], ...]

    @property
    def worse(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.worse]

    def summary(self, language: Language = "en") -> str:
        """One sentence: whether B is worse."""
        words = Words(language)
        if len(self.worse) == 1:
            return words("one_worse")
        return words("worse", count=len(self.worse)) if self.worse else words("not_worse")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "a": str(self.a.folder),
            "b": str(self.b.folder),
            "scores": [[each.points, each.max_points] for each in (self.a, self.b)],
            "worse": [pair.either.id for pair in self.worse],
            "figures": [_finite(asdict(each)) for each in self.figures],
            "verdicts": [
                {"id": pair.either.id, "a": pair.a and pair.a.status, "b": pair.b and pair.b.status}
                for pair in self.pairs
            ],
            "environment": [{"name": name, "a": a, "b": b} for name, a, b in self.environment],
        }


def compare(a: Stored, b: Stored) -> Comparison:
    """Each figure, verdict and part of the environment that either of the two has."""
    return Comparison(a, b, tuple(_figures(a, b)), tuple(_pairs(a, b)), tuple(_environment(a, b)))


def write_comparison(found: Comparison, path: Path, *, language: Language = "en") -> None:
    """Write the page whole or not at all. Raises InfraError if it cannot be written."""
    save(comparison_page(found, language=language), path)


def comparison_page(found: Comparison, *, language: Language = "en") -> str:
    """The page as HTML."""
    words = Words(language)
    return render(
        "compare.html",
        words,
        found=found,
        summary=found.summary(language),
        names=_names(found),
        charts=_charts(found, words),
        figures=[
            (each.name, *(_shown(value) for value in (each.a, each.b)), each.change or "–", each.unit)
            for each in found.figures
        ],
    )


# What is drawn: (name, word of its title, metrics with the word of their label).
_DRAWN: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("memory", "peak_mib", (("baseline.used_mib", "before"), ("quantized.used_mib", "after"))),
    (
        "weights",
        "weight_bytes",
        (("quantization.weight_bytes_before", "before"), ("quantization.weight_bytes_after", "after")),
    ),
    ("tokens", "tokens_tile", (("baseline.kv_tokens", "before"), ("quantized.kv_tokens", "after"))),
    (
        "perplexity",
        "perplexity_short",
        (
            ("quantization.perplexity_before", "ppl_before"),
            ("quantization.perplexity_after", "ppl_after"),
            ("quantization.perplexity_kv_int4", "ppl_kv"),
        ),
    ),
    ("speed", "speed_tile", (("chat.tokens_per_second", "conversation"),)),
    ("startup", "startup_s", (("baseline.startup_seconds", "before"), ("quantized.startup_seconds", "after"))),
)


def _charts(found: Comparison, words: Words) -> list[Chart]:
    known = {each.name: each for each in found.figures}
    drawn = []
    for name, title, wanted in _DRAWN:
        pairs = [(words(label), known[metric]) for metric, label in wanted if metric in known]
        if pairs:
            drawn.append(_chart(name, words(title), pairs, words))
    return drawn


def _chart(name: str, title: str, pairs: Sequence[tuple[str, Figure]], words: Words) -> Chart:
    bars = [
        Bar(label=f"{run} · {label}", value=value, shown=_shown(value), kind=kind)
        for label, each in pairs
        for run, value, kind in (("A", each.a, "before"), ("B", each.b, "after"))
    ]
    said = "; ".join(
        f"{label}: A {_shown(each.a)}, B {_shown(each.b)}" + (f" ({each.change})" if each.change else "")
        for label, each in pairs
    )
    return bar_chart(
        bars,
        name=f"compare-{name}",
        title=title,
        text=said,
        head=(words("figure"), "A", "B", words("change")),
        rows=[(label, _shown(each.a), _shown(each.b), each.change or "–") for label, each in pairs],
    )


def _figures(a: Stored, b: Stored) -> list[Figure]:
    ours, theirs = ({each.name: each for each in metrics(run.evidence)} for run in (a, b))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        Figure(
            name,
            (ours.get(name) or theirs[name]).unit,
            ours[name].value if name in ours else None,
            theirs[name].value if name in theirs else None,
        )
        for name in names
    ]


def _pairs(a: Stored, b: Stored) -> list[Pair]:
    ours, theirs = ({each.id: each for each in run.verdicts} for run in (a, b))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [Pair(ours.get(name), theirs.get(name)) for name in names]


def _environment(a: Stored, b: Stored) -> list[tuple[str, str, str]]:
    ours, theirs = ({"model": run.evidence.model} | run.evidence.environment for run in (a, b))
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names]


def _names(found: Comparison) -> tuple[str, str]:
    """What the runs are called: their folders' names, or their paths where these are the same."""
    a, b = found.a.folder.resolve(), found.b.folder.resolve()
    return (a.name, b.name) if a.name != b.name else (str(a), str(b))


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return grouped(value) if math.isfinite(value) and value == int(value) else figure(value, 3)


def _finite(told: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {name: None if isinstance(each, float) and not math.isfinite(each) else each for name, each in told.items()}
