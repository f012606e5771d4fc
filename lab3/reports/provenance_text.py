"""Passages that two reports share, or that stand in the tutorial, beyond what much of a batch has.

A passage is its letters and digits alone, in runs of RUN, as hashes: so spaces, line breaks, punctuation and full-width
letters make no difference, and Chinese, which has no spaces between words, is treated like English.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lab3.grading.similar import FilePrint, Fingerprint, Hashes, Pair, similar
from lab3.reports.model import Likeness, Place, Report

if TYPE_CHECKING:
    from lab3.reports.provenance_tutorial import Tutorial

RUN = 8  # letters and digits
ALIKE = 0.7  # of two passages' runs
TAKEN_OVER = 0.9  # of a passage's runs that stand in a tutorial
LEAST = 40  # letters and digits of a passage; shorter ones are alike by chance
MOST_LETTERS = 60_000  # of a report
_PROSE = ("paragraph", "list_item", "quote", "table")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage:
    """A block of prose."""

    block: int
    quote: str  # its beginning
    runs: Hashes

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"block": self.block, "quote": self.quote, "runs": self.runs.tolist()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The passage again, from JSON."""
        return cls(block=told["block"], quote=told["quote"], runs=np.array(told["runs"], np.uint64))

    def place(self) -> Place:
        """Where it stands."""
        return Place(block=self.block, quote=self.quote)


def passages_of(report: Report) -> Iterator[Passage]:
    """The report's prose, block by block. Code is left out: the lab says what to type."""
    left = MOST_LETTERS
    for number, block in enumerate(report.blocks):
        text = letters(block.text)[:left]
        if block.kind in _PROSE and len(text) >= LEAST:
            left -= len(text)
            yield Passage(block=number, quote=block.text[:200], runs=runs(text))


def letters(text: str) -> str:
    """The text's letters and digits, in one case and width."""
    return "".join(each for each in unicodedata.normalize("NFKC", text).casefold() if each.isalnum())


def runs(text: str) -> Hashes:
    """The hashes of each RUN letters and digits in a row, sorted; of what `letters` gave."""
    pieces = {text[start : start + RUN] for start in range(len(text) - RUN + 1)}
    hashes = [int.from_bytes(hashlib.blake2b(each.encode(), digest_size=8).digest(), "little") for each in pieces]
    return np.unique(np.array(hashes, np.uint64))


def numbers(text: str) -> frozenset[str]:
    """The figures in a text, as they are written."""
    return frozenset(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def covered(one: Hashes, other: Hashes) -> float:
    """The share of `one`'s runs that are among `other`'s, 0 to 1."""
    return len(np.intersect1d(one, other, assume_unique=True)) / len(one) if len(one) else 0.0


def text_likenesses(
    passages: Mapping[str, Sequence[Passage]], tutorials: Sequence[Tutorial] = ()
) -> Iterator[Likeness]:
    """Pairs of reports with passages alike. What the tutorials or more than a third of a batch have counts for none."""
    known = _all([each.runs for each in tutorials])
    for pair in similar([_as_files(name, each, known) for name, each in passages.items()], threshold=ALIKE):
        yield _told(pair, passages)


def tutorial_likenesses(passages: Mapping[str, Sequence[Passage]], tutorials: Sequence[Tutorial]) -> Iterator[Likeness]:
    """What of each report's prose stands in a tutorial."""
    for name, own in passages.items():
        for tutorial in tutorials:
            taken = [each for each in own if covered(each.runs, tutorial.runs) >= TAKEN_OVER]
            if taken:
                share = sum(len(each.runs) for each in taken) / sum(len(each.runs) for each in own)
                yield Likeness(
                    kind="tutorial_text",
                    one=name,
                    other=tutorial.name,
                    what=f"{_passages(len(taken))} stand in {tutorial.name}, in the same words",
                    share=round(share, 3),
                    places=tuple(each.place() for each in taken),
                )


def _as_files(name: str, passages: Sequence[Passage], known: Hashes) -> Fingerprint:
    files = [
        FilePrint(path=str(each.block), digest="", pieces=np.setdiff1d(each.runs, known, assume_unique=True))
        for each in passages
    ]
    return Fingerprint(name=name, files=tuple(files))


def _told(pair: Pair, passages: Mapping[str, Sequence[Passage]]) -> Likeness:
    by_block = {str(each.block): each for each in passages[pair.first]}
    places = tuple(by_block[first].place() for first in dict.fromkeys(first for first, _, _ in pair.alike))
    parts = [f"{_passages(len(places))} of {pair.first} are nearly the same in {pair.second}"] if places else []
    if pair.similarity is not None:
        parts.append(f"all their prose together is {pair.similarity:.0%} alike")
    share = max([pair.similarity or 0.0, *(rate for _, _, rate in pair.alike)])
    what = "; ".join(parts)
    return Likeness(
        kind="same_text", one=pair.first, other=pair.second, what=what, share=round(share, 3), places=places
    )


def _passages(count: int) -> str:
    return "1 passage" if count == 1 else f"{count} passages"


def _all(parts: Sequence[Hashes]) -> Hashes:
    return np.unique(np.concatenate([np.array([], np.uint64), *parts]))
