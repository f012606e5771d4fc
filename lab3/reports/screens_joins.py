"""Lines that a window's edge cut, put together again: what stood at the edge may be lost, and what parses decides.

OCR sees no space at the end of a row, and may overlook a lone quote at either end of it. How far a row reaches tells
whether something is gone, not what.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median

from lab3.reports.lines import Line

_LOST = (" ", '"', "'", ",", "")  # what may have stood in the cell that is gone; the likeliest first
_STRIPPED = (" ", "")  # the same where the rows are text, which loses nothing but spaces
_BEGUN = (" ", "'", '"')  # what the blank at the beginning of a row may be
_MOST = 200  # joinings that are tried


@dataclass(frozen=True)
class Joined:
    """The lines as one text; `starts` says where in it each line begins, of which `cuts` letters are left out."""

    text: str
    starts: tuple[int, ...]
    cuts: tuple[int, ...]
    between: tuple[str, ...]  # what was put at each joint

    def column(self, line: int, at: int) -> int:
        """Where letter `at` of a line stands in the text."""
        return self.starts[line] + max(0, at - self.cuts[line])


@dataclass(frozen=True)
class Lines:
    """Lines of one object; the first begins at letter `at`."""

    lines: tuple[Line, ...]
    at: int

    def first(self) -> Joined:
        """The likeliest joining: a row that ends a cell before the others lost a space."""
        return self._made([each[0] for each in self._choices()])

    def joinings(self) -> Iterator[Joined]:
        """The likeliest, then those that differ from it at one joint, then at two."""
        choices = self._choices()
        default = [each[0] for each in choices]
        yield self._made(default)
        open_ = [number for number, each in enumerate(choices) if len(each) > 1]
        tried = 0
        for count in (1, 2):
            for numbers in combinations(open_, count):
                for others in product(*(choices[number][1:] for number in numbers)):
                    if (tried := tried + 1) > _MOST:
                        return
                    changed = list(default)
                    for number, other in zip(numbers, others, strict=True):
                        changed[number] = other
                    yield self._made(changed)

    def longer(self, joined: Joined) -> Iterator[Joined]:
        """With another digit wherever a number ends at a joint and something is gone."""
        for number, each in enumerate(self._choices()):
            if len(each) > 1 and self.lines[number].text.rstrip()[-1:].isdigit():
                yield self._made([*joined.between[:number], "1", *joined.between[number + 1 :]])

    def _made(self, between: Sequence[str]) -> Joined:
        text = ""
        starts, cuts = [], []
        for number, line in enumerate(self.lines):
            cut = self.at if number == 0 else self._cut(line.text, lost=bool(between[number - 1]))
            starts.append(len(text))
            cuts.append(cut)
            text += line.text[cut:]
            if number < len(between):
                text += between[number]
        return Joined(text, tuple(starts), tuple(cuts), tuple(between))

    def _choices(self) -> list[tuple[str, ...]]:
        """For each joint what may stand there."""
        short = _missing(self.lines)
        found: list[tuple[str, ...]] = []
        for number, line in enumerate(self.lines[:-1]):
            following = self.lines[number + 1].text
            blank = self._blank(following)
            if line.text.endswith(" "):
                found.append(("",))
            elif short[number] == 1 and not _is_wide(following[:1]):
                found.append(_LOST if line.box is not None else _STRIPPED)
            elif short[number] == 0 and blank and line.box is not None:
                found.append(_BEGUN)
            elif short[number] > 1:
                found.append(("", " "))
            else:
                found.append(("",))
        return found

    def _indent(self) -> int:
        first = self.lines[0].text
        return len(first) - len(first.lstrip()) if not first[: self.at].strip() else 0

    def _blank(self, text: str) -> bool:
        """Whether a row begins with one blank cell."""
        return len(text) - len(text.lstrip()) - self._indent() == 1

    def _cut(self, text: str, *, lost: bool) -> int:
        """How many letters of a row are left out: its indent, and the blank whose letter stands at the joint."""
        blanks = len(text) - len(text.lstrip())
        return min(self._indent() + (1 if lost and self._blank(text) else 0), blanks)


def _missing(lines: Sequence[Line]) -> list[int]:
    """How many cells each line ends before the one that reaches farthest."""
    widths = [_width(line.text) for line in lines]
    boxes = [line.box for line in lines if line.box is not None]
    if len(boxes) < len(lines) or not any(widths):
        return [max(widths) - each for each in widths]
    cell = median(
        (box[2] - box[0]) / max(1, _width(line.text.lstrip())) for line, box in zip(lines, boxes, strict=True)
    )
    edge = max(box[2] for box in boxes)
    return [round((edge - box[2]) / max(1.0, cell)) for box in boxes]


def _width(text: str) -> int:
    return sum(1 + _is_wide(each) for each in text)


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter or " ") in "WF"
