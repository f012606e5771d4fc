"""Python in pictures of editors: lines with numbers before them, or without, as one text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from lab3.reports.lines import Sheet
from lab3.reports.model import CodeSeen

_STRONG = re.compile(
    r"^\s*(?:from\s+[\w.]+\s+import\b|import\s+\w|def\s+\w+\s*\(|class\s+\w+|client\s*=|response\s*="
    r"|messages?\s*(?:=|\.append)"
    r"|tools\s*=|print\s*\(|func\d?_\w+\s*=|model_name\s*=|for\s+\w+.*\bin\b.*:|if\s+.*:\s*$|return\b|eval\s*\(|@\w+)"
)
_WEAK = re.compile(r"""^\s*(?:[\w.]+\s*=\s*\S|['"]\w+['"]\s*:|[{}\[\])(,]+\s*$|[\w.]+\(.*\)?$|#|\w+=[\w.'"]+,?$)""")
_NUMBERED = re.compile(r"^\s{0,6}(\d{1,4})(?=\s|$)(.*)$")
_LEAST = 4
_STRONG_SHARE = 0.12
_CODE_SHARE = 0.6
_DIGITS_OF_NAMES = (
    (re.compile(r"\b0pen(?=AI\b)"), "Open"),
    (re.compile(r"\b([fF])a[l1I]se\b"), r"\1alse"),
    (re.compile(r"\bY0UR\b"), "YOUR"),
)


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: CodeSeen


def find_code(sheet: Sheet) -> Iterator[Found]:
    """The Python that a picture shows, if most of its lines are; a report's own text tells by its fences."""
    if not sheet.picture:
        return
    rows = [line.text for line in sheet.lines]
    numbered = sum(bool(_NUMBERED.match(row)) for row in rows) >= max(3, 0.6 * len(rows))
    plain = [_unnumbered(row) if numbered else row for row in rows]
    strong = [number for number, row in enumerate(plain) if _STRONG.match(row)]
    some = [number for number, row in enumerate(plain) if _STRONG.match(row) or _WEAK.match(row)]
    if len(some) < _LEAST or len(strong) < max(2, _STRONG_SHARE * len(rows)):
        return
    first, last = some[0], some[-1]
    inside = [number for number in some if first <= number <= last]
    filled = [number for number in range(first, last + 1) if plain[number].strip()]
    if len(inside) < _CODE_SHARE * len(filled):
        return
    text = textwrap.dedent("\n".join(plain[first : last + 1]))
    for pattern, instead in _DIGITS_OF_NAMES:
        text = pattern.sub(instead, text)
    yield Found(first, last, CodeSeen(text=text, place=sheet.place(first, last)))


def _unnumbered(row: str) -> str:
    found = _NUMBERED.match(row)
    return found[2] if found else row
