"""The corpus of students' reports: what a careful person expects, and what lab3 made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lab3.reports.model import (
    CompletionSeen,
    FolderSize,
    GradedReport,
    Judged,
    LogLine,
    MemoryReading,
    Printed,
    Reading,
)

CORPUS = Path(__file__).parent / "corpus"
SLUGS = tuple(sorted(path.parent.name for path in CORPUS.glob("*/expected.json")))
# Read and judged wherever tests run; the other pictures take minutes, so `tox -e corpus` reads them.
QUICK = (
    "01-slice-zh",
    "04-text-only",
    "06-notebook",
    "10-gbk-windows",
    "21-claims-only",
    "31-wrong-product",
    "38-out-of-memory",
)
ACCUSING = ("contradiction", "impossible", "mistaken")


@dataclass(frozen=True)
class Case:
    """A report of the corpus, and what a careful person reads and judges."""

    slug: str

    @property
    def folder(self) -> Path:
        return CORPUS / self.slug

    @cached_property
    def told(self) -> Mapping[str, Any]:
        told: Mapping[str, Any] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return told

    @property
    def expected(self) -> dict[str, list[str]]:
        """By check: the statuses that a person would accept."""
        return {check: _listed(status) for check, status in self.told["expected"].items()}

    @property
    def kinds(self) -> dict[str, list[str]]:
        """By check: the kinds that a person would accept of a fail."""
        return {check: _listed(kind) for check, kind in self.told["kinds"].items()}

    def figures(self) -> Iterator[tuple[str, str | None, list[str]]]:
        """Each picture, its digest (None where it is embedded in the report), and what a person reads in it."""
        for name, figures in self.told["figures"].items():
            path = self.folder / name
            yield name, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None, figures


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Corpus:
    """The graded reports by the names of their folders."""

    graded: Mapping[str, GradedReport]

    def judged(self, slug: str) -> dict[str, Judged]:
        return {each.id: each for each in self.graded[slug].judged}

    def read(self, slug: str, digest: str | None) -> list[str]:
        """What was read off a picture; without a digest, off the whole report."""
        return [
            figure
            for each in self.graded[slug].readings
            if digest is None or each.place.picture == digest
            for figure in figures_of(each)
        ]

    def sure_memory(self, slug: str, digest: str) -> list[str]:
        """The figures of memory that were read off a picture without a doubt."""
        return [
            figure
            for each in self.graded[slug].readings
            if isinstance(each, MemoryReading) and each.place.picture == digest and not each.doubt and each.total_mib
            for figure in figures_of(each)
        ]


def figures_of(reading: Reading) -> list[str]:
    """A reading as expected.json writes it."""
    match reading:
        case MemoryReading():
            return [f"{reading.used_mib}/{reading.total_mib}"]
        case FolderSize():
            return [reading.text]
        case LogLine(port=int(port)):
            return [f"port {port}"]
        case Printed():
            return [f"printed {reading.text}"]
        case CompletionSeen():
            usage = f"tokens {reading.prompt_tokens}+{reading.completion_tokens}={reading.total_tokens}"
            return [usage, *(f"call {call.name}{_sorted(call.arguments)}" for call in reading.tool_calls)]
        case _:
            return []


def _sorted(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments
