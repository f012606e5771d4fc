"""The text of a picture in rows: found, read, checked against the cells that its letters stand in, and joined."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lab3.reports.model import Box, TextLine
from lab3.reports.ocr_cells import Cell, Grid, cells_of, find_grid, gaps_of, is_wide, rhythm_of
from lab3.reports.ocr_finding import find_rows, missed_in
from lab3.reports.ocr_model import Letter, Strip, read_strips
from lab3.reports.ocr_skew import Upright

if TYPE_CHECKING:
    from lab3.reports.ocr_picture import Pixels

UNREAD = "\N{REPLACEMENT CHARACTER}"  # stands for a letter whose ink is seen, and which could not be read
_LEAST_SURE = 0.35  # of a strip's letters on the average
_STRETCHES = (1.3, 1.6)
_UNSURE_DIGIT = 0.9
_DOUBTED = 0.5
_LEAST_RHYTHM = 0.42  # letters in cells have 0.5 to 1, others less the more they are: 0.3 for 12, 0.15 for 40
_TELLING = 7  # letters, from which on it can be told


@dataclass(frozen=True)
class _Word:
    """A word with its place: `column` is the number of its first cell, if the picture has cells."""

    text: str
    box: Box
    sure: float
    column: int | None = None
    exact: bool = True  # each of its letters has its cell


def read_rows(pixels: Pixels) -> tuple[tuple[TextLine, ...], tuple[TextLine, ...]]:
    """The rows from the top down, and the words that they are made of. Boxes are the picture's as it is given."""
    rows, level = find_rows(pixels)
    seen = level.pixels if level else pixels
    if not rows:
        return (), ()
    strips = [strip for row in rows for strip in row.strips]
    told = read_strips(seen, strips)
    grid = find_grid(seen, strips, told)
    if grid:
        missed = [strip for row in rows for strip in missed_in(seen, row, grid)]
        strips += missed
        told += read_strips(seen, missed)
    readings = [_reading(seen, strip, letters, grid) for strip, letters in zip(strips, told, strict=True) if letters]
    readings = [each for each in readings if each.sure >= _LEAST_SURE or any(cell.shape for cell in each.cells)]
    words = _in_cells(seen, readings, grid) if grid else [_plain(seen, each, None) for each in readings]
    lines, pieces = _joined([word for each in words for word in each])
    if level is None:
        return lines, pieces
    return tuple(_stored(each, level) for each in lines), tuple(_stored(each, level) for each in pieces)


def _stored(line: TextLine, level: Upright) -> TextLine:
    return replace(line, box=level.stored(line.box)) if line.box else line


# ------------------------------------------------------------------------------------------------------------ in cells


@dataclass(frozen=True)
class _Reading:
    """A strip with its cells. `fits` says that nearly every cell with ink has its letter."""

    strip: Strip
    letters: list[Letter]
    cells: list[Cell]
    rhythm: float = 1.0  # of its letters, see ocr_cells.rhythm_of

    @property
    def sure(self) -> float:
        return sum(each.sure for each in self.letters) / len(self.letters)

    @property
    def holes(self) -> int:
        return _holes(self.cells)

    @property
    def lost(self) -> int:
        placed = sum(cell.letter is not None and bool(cell.letter.text) for cell in self.cells)
        return sum(not each.text.isspace() for each in self.letters) - placed

    @property
    def proportional(self) -> bool:
        """Whether its letters are of many widths, though another row of the picture has cells."""
        return self.rhythm < _LEAST_RHYTHM and len(self.letters) >= _TELLING

    @property
    def fits(self) -> bool:
        return bool(self.cells) and self.holes + self.lost <= max(2, 0.2 * len(self.letters)) and not self.proportional


def _reading(pixels: Pixels, strip: Strip, letters: list[Letter], grid: Grid | None) -> _Reading:
    if grid is None:
        return _Reading(strip, letters, [])
    return _Reading(strip, letters, _trimmed(cells_of(pixels, strip, letters, grid)), rhythm_of(letters, grid))


def _in_cells(pixels: Pixels, readings: Sequence[_Reading], grid: Grid) -> list[list[_Word]]:
    words: list[list[_Word]] = [[] for _ in readings]
    doubtful: list[tuple[int, Strip, list[Cell]]] = []
    mostly = 2 * sum(len(each.letters) for each in readings if each.proportional)
    page = mostly > sum(len(each.letters) for each in readings)  # a page with a line of code on it
    for number, reading in enumerate(readings):
        if reading.proportional or (page and (len(reading.letters) < _TELLING or not reading.fits)):
            words[number] = _plain(pixels, reading, None)
            continue
        if not reading.fits:
            words[number] = _plain(pixels, reading, grid)
            continue
        for cells in _runs(reading.cells):
            strip = _around(cells, reading.strip, grid.pitch, pixels.shape[1])
            if reading.lost or any(_doubtful(cell) for cell in cells):
                doubtful.append((number, strip, cells))
            else:
                words[number].append(_word(cells, strip, grid.pitch))
    for number, word in _read_again(pixels, doubtful, grid):
        words[number].append(word)
    return words


def _read_again(
    pixels: Pixels, doubtful: list[tuple[int, Strip, list[Cell]]], grid: Grid
) -> Iterable[tuple[int, _Word]]:
    """Words with a hole, or a digit that is not sure, read by themselves and wider; the reading that fits is taken."""
    for stretch in _STRETCHES:
        still = []
        again = read_strips(pixels, [strip for _, strip, _ in doubtful], stretch=stretch)
        for (number, strip, cells), letters in zip(doubtful, again, strict=True):
            fresh = _trimmed(cells_of(pixels, strip, letters, grid))
            placed = sum(cell.letter is not None and bool(cell.letter.text) for cell in fresh)
            whole = placed == sum(not each.text.isspace() for each in letters)
            holes, old_holes = _holes(fresh), _holes(cells)
            if whole and not holes and (old_holes or _text(fresh) == _text(cells)):
                for part in _runs(fresh):
                    yield number, _word(part, _around(part, strip, grid.pitch, pixels.shape[1]), grid.pitch)
            elif whole and not holes and _surer(fresh) > _surer(cells) + 0.1:
                for part in _runs(fresh):
                    yield number, _word(part, _around(part, strip, grid.pitch, pixels.shape[1]), grid.pitch, doubt=True)
            else:
                still.append((number, strip, cells))
        doubtful = still
    for number, strip, cells in doubtful:
        yield number, _word(cells, strip, grid.pitch, doubt=bool(_holes(cells)) or _unsure(cells))


def _runs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The words: cells between empty ones."""
    runs: list[list[Cell]] = [[]]
    for cell in cells:
        if cell.inked:
            runs[-1].append(cell)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _around(cells: Sequence[Cell], strip: Strip, pitch: float, width: int) -> Strip:
    left = max(0, math.floor(cells[0].middle - 0.75 * pitch))
    right = min(width, math.ceil(cells[-1].middle + 0.75 * pitch))
    return replace(strip, left=left, right=max(right, left + 3))


def _word(cells: Sequence[Cell], strip: Strip, pitch: float, *, doubt: bool = False) -> _Word:
    sure = [cell.letter.sure for cell in cells if cell.letter] or [0.3]
    mean = sum(sure) / len(sure)
    if doubt:
        mean = min(mean, _DOUBTED)
    box = (strip.left, strip.top, strip.right, strip.bottom)
    text = _text(cells)
    if UNREAD in text and not any(each.isdigit() for each in text):
        text = text.replace(UNREAD, "")  # ink that is no letter, or one that no figure depends on
    return _Word(text, box, mean, round(cells[0].middle / pitch))


def _trimmed(cells: list[Cell]) -> list[Cell]:
    """Without what stands at the edges of a strip and is no letter: bars to scroll with, frames, cursors."""
    while len(cells) > 1 and (cells[-1].text in _BLOCKS or (cells[-1].hole and not cells[-2].text.isdigit())):
        cells = cells[:-1]
    return cells


def _text(cells: Sequence[Cell]) -> str:
    wide = any(cell.letter and not _narrow(cell.letter.text) for cell in cells)
    return "".join(UNREAD if cell.hole else _typed(cell.text, wide=wide) for cell in cells)


def _typed(letter: str, *, wide: bool = False) -> str:
    """A letter of a terminal: the model sees marks over letters, and signs of full width, where there are none."""
    if wide and is_wide(letter):
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    plain = "".join(each for each in plain if not unicodedata.combining(each))
    return _LOOKALIKES.get(plain, plain[:1] or letter)


_BLOCKS = ("■", "□", "█", "▌", "▍", "▎", "▏", "▐", "口", "日")
_LOOKALIKES = dict(zip("’‘“”，：；。－—", "''\"\",:;.--", strict=True))


def _narrow(letter: str) -> bool:
    return unicodedata.east_asian_width(letter[:1] or " ") != "W"


def _holes(cells: Iterable[Cell]) -> int:
    return sum(cell.hole for cell in cells)


def _doubtful(cell: Cell) -> bool:
    if cell.letter is None:
        return cell.hole
    return cell.letter.text.isdigit() and cell.letter.sure < _UNSURE_DIGIT


def _unsure(cells: Iterable[Cell]) -> bool:
    return any(cell.letter and cell.letter.text.isdigit() and cell.letter.sure < 0.6 for cell in cells)


def _surer(cells: Sequence[Cell]) -> float:
    return min((cell.letter.sure for cell in cells if cell.letter), default=0.0)


# -------------------------------------------------------------------------------------------------------------- joining


def _plain(pixels: Pixels, reading: _Reading, grid: Grid | None) -> list[_Word]:
    """A strip of letters of many widths: what the model says, with spaces where its ink has gaps."""
    strip, letters = reading.strip, reading.letters
    spaced = any(each.text.isspace() for each in letters)  # then the model sees its spaces by itself
    gaps = gaps_of(pixels, strip, least=0.95 * grid.pitch if grid else 0.0, wide=spaced and grid is None)
    text = ""
    for number, letter in enumerate(letters):
        before = letters[number - 1] if number else None
        if before and not before.text.isspace() and not letter.text.isspace():
            mixed = _narrow(before.text) != _narrow(letter.text) and max(before.text, letter.text) < "\uff00"
            latin = mixed or not (is_wide(before.text) or is_wide(letter.text))
            digits = before.text.isdigit() and letter.text.isdigit()  # a 1 has more room around it than a letter
            if latin and not digits and any(before.x < gap < letter.x for gap in gaps):
                text += " "
        text += letter.text
    column = round(letters[0].x / grid.pitch) if grid else None
    return [_Word(text, (strip.left, strip.top, strip.right, strip.bottom), reading.sure, column, exact=False)]


def _joined(words: Sequence[_Word]) -> tuple[tuple[TextLine, ...], tuple[TextLine, ...]]:
    rows: list[list[_Word]] = []
    for word in sorted(words, key=lambda each: (each.box[1] + each.box[3], each.box[0])):
        middle = (word.box[1] + word.box[3]) / 2
        last = rows[-1][0].box if rows else None
        if last and abs(middle - (last[1] + last[3]) / 2) < 0.3 * min(last[3] - last[1], word.box[3] - word.box[1]):
            rows[-1].append(word)
        else:
            rows.append([word])
    first = min((word.column for word in words if word.column is not None), default=0)
    lines, pieces = [], []
    for row in rows:
        row.sort(key=lambda each: each.box[0])
        lines.append(_line(row, first))
        pieces += [TextLine(word.text, word.box, round(word.sure, 3)) for word in row]
    return tuple(lines), tuple(pieces)


def _line(row: Sequence[_Word], first: int) -> TextLine:
    text = ""
    ends: tuple[_Word, int] | None = None
    for word in row:
        if word.column is not None and (ends is None or ends[0].exact):
            spaces = word.column - (ends[1] if ends else first)
        elif ends is None:
            spaces = 0
        else:
            gap = word.box[0] - ends[0].box[2]
            spaces = max(1, round(gap / (0.5 * (word.box[3] - word.box[1]))))
        text += " " * max(0, spaces) + word.text
        ends = word, (word.column + sum(1 + is_wide(each) for each in word.text) if word.column is not None else 0)
    weights = [len(word.text) for word in row]
    sure = sum(word.sure * weight for word, weight in zip(row, weights, strict=True)) / max(1, sum(weights))
    doubted = any(word.sure <= _DOUBTED and any(each.isdigit() for each in word.text) for word in row)
    box = (
        min(word.box[0] for word in row),
        min(word.box[1] for word in row),
        max(word.box[2] for word in row),
        max(word.box[3] for word in row),
    )
    return TextLine(text, box, round(min(sure, 0.6) if doubted else sure, 3))
