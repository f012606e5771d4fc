"""The lines of a picture or of pasted text, made ready for reading: each with its place, OCR's usual slips put right.

Only slips that cannot be anything else are put right here; what a figure is, its own reader decides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lab3.reports.model import Box, Place, Recognised, TextLine

MOST_LINES = 5000
MOST_CHARACTERS = 4000  # of a line
_QUOTE = 2000
# Words that OCR spells in more than one way, with what they are: names of models, flags and programs of the lab.
_SLIPS = (
    (re.compile(r"(?<=[wW]4[aA])[lI|](?=6)"), "1"),
    (re.compile(r"(?<=internlm2)[ .~\-,](?=5[_ ~\-])"), "_"),
    (re.compile(r"(?<=[25]-)[lIi|](?=[_ ~.]8b)"), "1"),
    (re.compile(r"(?<=internlm2_5-1)[ .~\-](?=8b)"), "_"),
    (re.compile(r"\b[iIl1|]mdep[l1I|]oy\b"), "lmdeploy"),
    (re.compile(r"\blmdep[1I|]oy\b"), "lmdeploy"),
    (re.compile(r"\blmdeploy(?=(?:serve|lite|chat)\b)"), "lmdeploy "),
    (re.compile(r"(?<=[/_])mode[i1I|](?=s?[/_])"), "model"),
    (re.compile(r"\bapi[ .~-]server\b"), "api_server"),
    (re.compile(r"\bauto[ .~-]awq\b"), "auto_awq"),
    (re.compile(r"(?<=\bdu -sh )\s*(?:[\u4e00-\u9fff×xXtk])$"), "*"),
    (re.compile(r"\bM[i1lI][B8]\b"), "MiB"),
    (re.compile(r"(?<=\d)M[i1lI][B8]\b"), "MiB"),
    (re.compile(r"\bmemory\.(?:tota[i1I|]|tot[ao]l)\b"), "memory.total"),
    (re.compile(r"\bChatcomp[l1I]et[i1]on"), "ChatCompletion"),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """`text` is put right, `written` is as it was read; `words` are OCR's pieces of it."""

    text: str
    written: str
    box: Box | None = None
    confidence: float = 1.0
    number: int | None = None  # in the file, from 1
    words: tuple[TextLine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The lines of a picture, or of a block of text; `picture` is the picture's digest."""

    lines: tuple[Line, ...]
    block: int
    picture: str | None = None
    width: int = 0
    height: int = 0

    def place(self, first: int, last: int | None = None, *, quote: str = "") -> Place:
        """Where the lines from `first` to `last` stand; `quote`, if it is a part of one line, narrows the box."""
        last = first if last is None else last
        lines = self.lines[first : last + 1]
        words = _words_of(lines[0], quote) if quote and len(lines) == 1 else ()
        boxes = [each.box for each in (words or lines) if each.box is not None]
        box = None
        if boxes:
            box = (
                min(b[0] for b in boxes),
                min(b[1] for b in boxes),
                max(b[2] for b in boxes),
                max(b[3] for b in boxes),
            )
        confidence = _confidence(words or lines)
        whole = "\n".join(each.written.strip() for each in lines)
        return Place(
            block=self.block,
            quote=(quote or whole)[:_QUOTE],
            line=lines[0].number if lines else None,
            picture=self.picture,
            box=box,
            confidence=confidence,
        )


def _confidence(pieces: Sequence[Line | TextLine]) -> float:
    """Of one or two pieces the lower; of more the mean by their lengths, since a word lost in one is not the whole."""
    if len(pieces) <= 2:
        return min((each.confidence for each in pieces), default=1.0)
    weights = [len(each.text) for each in pieces]
    total = sum(each.confidence * weight for each, weight in zip(pieces, weights, strict=True))
    return round(total / max(1, sum(weights)), 3)


def sheet_of_picture(seen: Recognised, *, block: int) -> Sheet:
    """The lines that OCR saw."""
    lines = tuple(
        Line(text=repaired(each.text), written=each.text, box=each.box, confidence=each.confidence, words=words)
        for each, words in _with_words(seen)
    )
    return Sheet(lines=lines, block=block, picture=seen.digest, width=seen.width, height=seen.height)


def sheet_of_text(text: str, *, block: int, line: int | None) -> Sheet:
    """The lines of a block of text, which are as they are."""
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:MOST_LINES]
    lines = tuple(
        Line(text=_plain(row), written=row, number=None if line is None else line + number)
        for number, row in enumerate(rows)
    )
    return Sheet(lines=lines, block=block)


def repaired(text: str) -> str:
    """A line that OCR read, with signs of full width and names that every report has as they are typed."""
    text = _plain(text)
    for pattern, instead in _SLIPS:
        text = pattern.sub(instead, text)
    return text


def _plain(text: str) -> str:
    """Without escapes of a terminal and invisible signs; signs of full width stay where there is Chinese."""
    text = _ESCAPE.sub("", text[:MOST_CHARACTERS]).expandtabs(8)
    text = "".join(" " if each in _SPACES else each for each in text if each not in _INVISIBLE)
    if not _CJK.search(text):
        text = "".join(unicodedata.normalize("NFKC", each) if "\uff01" <= each <= "\uff5e" else each for each in text)
    return text.rstrip()


_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_CJK = re.compile(r"[\u3400-\u9fff]")
_SPACES = "\u00a0\u2002\u2003\u2009\u202f\u3000"
_INVISIBLE = "\u200b\u200c\u200d\ufeff\0"


def _with_words(seen: Recognised) -> list[tuple[TextLine, tuple[TextLine, ...]]]:
    """Each line with the pieces that stand in it; both come from the top down and from the left."""
    found = []
    pieces = list(seen.pieces)
    for line in seen.lines[:MOST_LINES]:
        inside: list[TextLine] = []
        while pieces and _within(pieces[0].box, line.box):
            inside.append(pieces.pop(0))
        found.append((line, tuple(inside)))
    return found


def _within(inner: Box | None, outer: Box | None) -> bool:
    if inner is None or outer is None:
        return False
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _words_of(line: Line, quote: str) -> tuple[TextLine, ...]:
    """The pieces of the line that the quote is made of."""
    wanted = quote.split()
    count = len(wanted)
    texts = [repaired(each.text) for each in line.words]
    for start in range(len(texts) - count + 1):
        if texts[start : start + count] == wanted:
            return line.words[start : start + count]
    inside = [each for each in line.words if any(character.isalnum() for character in each.text)]
    found = [
        each for each in inside if each.text in quote or any(word in each.text for word in wanted if len(word) > 2)
    ]
    return tuple(found)


def joined(lines: Sequence[Line]) -> str:
    """Lines that a terminal's edge cut, as one; what stood at the edge is not told from a space that is gone."""
    return "".join(line.text for line in lines)
