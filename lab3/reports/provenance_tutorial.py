"""The tutorial, as prints alone: which blocks of a report are its, so that its example figures are not the student's.

No word of a tutorial is kept in lab3: whoever grades names its files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab3.grading.similar import Hashes
from lab3.reports.model import Report
from lab3.reports.provenance_text import TAKEN_OVER, covered, letters, numbers, runs

_LEAST_PROSE = 24  # letters and digits; shorter ones are anybody's
_LEAST_CODE = 60
_TAKEN_OVER_CODE = 0.97


@dataclass(frozen=True, kw_only=True, eq=False)
class Tutorial:
    """A tutorial's print."""

    name: str
    digest: str  # of all that it is told by
    runs: Hashes
    numbers: frozenset[str]
    pictures: frozenset[str]  # their digests


def read_tutorial(path: Path) -> Tutorial:
    """The print of a tutorial: a report's formats are read. Raises UsageError if it cannot be read."""
    from lab3.reports.reading import read_report

    return tutorial_of(read_report(path), name=path.name)


def tutorial_of(report: Report, *, name: str) -> Tutorial:
    """The print of a tutorial that was read."""
    # Passages across blocks too: a student joins or splits its paragraphs.
    whole = letters("".join(block.text for block in report.blocks))
    pictures = frozenset(picture.digest for picture in report.pictures if picture.digest)
    content = hashlib.sha256(whole.encode("utf-8", "replace") + "".join(sorted(pictures)).encode())
    figures: frozenset[str] = frozenset().union(*(numbers(block.text) for block in report.blocks))
    return Tutorial(name=name, digest=content.hexdigest(), runs=runs(whole), numbers=figures, pictures=pictures)


def tutorial_blocks(report: Report, tutorials: Sequence[Tutorial]) -> frozenset[int]:
    """The blocks, by index, that were taken over: nearly all their words, and each of their figures, are a tutorial's.

    A passage into which a student wrote figures of their own is the student's. So is what is too short to tell.
    """
    if not tutorials:
        return frozenset()
    known = np.unique(np.concatenate([each.runs for each in tutorials]))
    figures: frozenset[str] = frozenset().union(*(each.numbers for each in tutorials))
    pictures: frozenset[str] = frozenset().union(*(each.pictures for each in tutorials))
    found = set()
    for number, block in enumerate(report.blocks):
        if block.picture is not None and block.picture.digest in pictures:
            found.add(number)
            continue
        typed = block.kind in ("code", "output")
        text = letters(block.text)
        least, share = (_LEAST_CODE, _TAKEN_OVER_CODE) if typed else (_LEAST_PROSE, TAKEN_OVER)
        if len(text) >= least and numbers(block.text) <= figures and covered(runs(text), known) >= share:
            found.add(number)
    return frozenset(found)
