"""The text of a picture in rows: found, read, checked against the cells that its letters stand in, and joined."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from lab3.reports.model import Box, TextLine
from lab3.reports.ocr_cells import Cell, Grid, band_of, baseline_of, cells_of, find_grid, gaps_of, ink_of, is_wide
from lab3.reports.ocr_model import Letter, Strip, find_strips, read_strips

if TYPE_CHECKING:
    from lab3.reports.ocr_picture import Pixels

UNREAD = "\N{REPLACEMENT CHARACTER}"  # stands for a letter whose ink is seen, and which could not be read
_WANTED_HEIGHT = 30  # pixels of a line of text, for finding it
_MOST_LOOKED_AT = 5_500_000  # pixels
_SMALL = 400  # pixels: what is lower is looked at in twice its size at once
_LEAST_SURE = 0.35  # of a strip's letters on the average
_STRETCHES = (1.3, 1.6)
_UNSURE_DIGIT = 0.9
_DOUBTED = 0.5
_LONELY = 24  # cells: a single letter so far from all others is an edge of a window


@dataclass(frozen=True)
class _Row:
    """Strips that stand beside each other, from the left; all have the row's top and bottom."""

    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class _Word:
    """A word with its place: `column` is the number of its first cell, if the picture has cells."""

    text: str
    box: Box
    sure: float
    column: int | None = None
    exact: bool = True  # each of its letters has its cell


def read_rows(pixels: Pixels) -> tuple[tuple[TextLine, ...], tuple[TextLine, ...]]:
    """The rows from the top down, and the words that they are made of."""
    rows = [_grounded(pixels, row) for row in _rows(_found(pixels))]
    if not rows:
        return (), ()
    strips = [strip for row in rows for strip in row.strips]
    told = read_strips(pixels, strips)
    grid = find_grid(pixels, strips, told)
    if grid:
        missed = [strip for row in rows for strip in _missed(pixels, row, grid)]
        strips += missed
        told += read_strips(pixels, missed)
    readings = [_reading(pixels, strip, letters, grid) for strip, letters in zip(strips, told, strict=True) if letters]
    readings = [each for each in readings if each.sure >= _LEAST_SURE or any(cell.shape for cell in each.cells)]
    words = _in_cells(pixels, readings, grid) if grid else [_plain(pixels, each, None) for each in readings]
    return _joined([word for each in words for word in each])


# ------------------------------------------------------------------------------------------------------------- finding


def _found(pixels: Pixels) -> list[Strip]:
    """Strips of text, looked for once or twice: small letters are found better in a larger picture."""
    height, width = pixels.shape[:2]
    largest = math.sqrt(_MOST_LOOKED_AT / (height * width))
    scale = min(largest, 2.0 if min(height, width) < _SMALL else 1.0)
    found = find_strips(pixels, scale=scale)
    tall = median(strip.height for strip in found) if found else _WANTED_HEIGHT / 2 / scale
    better = min(largest, 3.0, max(0.5, _WANTED_HEIGHT / tall))
    if better > 1.25 * scale:
        return find_strips(pixels, scale=better) or found
    return found


def _rows(strips: Sequence[Strip]) -> list[_Row]:
    """Strips beside each other. What is much lower than the others, like a lone `*`, joins the row around it."""
    if not strips:
        return []
    usual = median(strip.height for strip in strips)
    tall = [strip for strip in strips if strip.height >= 0.7 * usual]
    groups: list[list[Strip]] = []
    for strip in sorted(tall, key=lambda each: (each.top + each.bottom, each.left)):
        group = next((each for each in reversed(groups[-3:]) if _beside(strip, each)), None)
        if group is None:
            groups.append([strip])
        else:
            group.append(strip)
    rows = [_merged(group) for group in groups]
    for strip in strips:
        if strip.height < 0.7 * usual:
            middle = (strip.top + strip.bottom) / 2
            around = [row for row in rows if row[0].top <= middle <= row[0].bottom]
            if around:
                row = min(around, key=lambda each: abs(each[0].top + each[0].bottom - 2 * middle))
                row[:] = _merged([*row, replace(strip, top=row[0].top, bottom=row[0].bottom)])
            else:
                rows.append([strip])
    return [_Row(tuple(row)) for row in sorted(rows, key=lambda each: (each[0].top, each[0].left))]


def _grounded(pixels: Pixels, row: _Row) -> _Row:
    """The row with its baseline, which its longest strip tells best."""
    baseline = baseline_of(pixels, max(row.strips, key=lambda each: each.width))
    return _Row(tuple(replace(strip, baseline=baseline) for strip in row.strips))


def _beside(strip: Strip, group: Sequence[Strip]) -> bool:
    height = median(each.height for each in group)
    away = abs((strip.top + strip.bottom) / 2 - median((each.top + each.bottom) / 2 for each in group))
    low, high = sorted((height, strip.height))
    return away < 0.4 * low and high < 1.9 * low


def _merged(group: Sequence[Strip]) -> list[Strip]:
    """Strips that touch, or nearly so, are one: a line must not be cut within a word."""
    weights = sum(each.width for each in group)
    top = round(sum(each.top * each.width for each in group) / weights)
    bottom = round(sum(each.bottom * each.width for each in group) / weights)
    merged: list[Strip] = []
    for each in sorted(group, key=lambda strip: strip.left):
        if merged and each.left - merged[-1].right < 0.9 * (bottom - top):
            last = merged[-1]
            merged[-1] = replace(last, right=max(last.right, each.right))
        else:
            merged.append(Strip(each.left, top, each.right, bottom))
    return merged


def _missed(pixels: Pixels, row: _Row, grid: Grid) -> list[Strip]:
    """Ink in the row that no strip covers, e.g. a lone `>` or `*` or digit: words of up to forty cells."""
    import numpy as np

    whole = replace(row.strips[0], left=0, right=pixels.shape[1])
    band = band_of(whole, grid, pixels.shape[0])
    ink = ink_of(pixels, band)
    columns: Any = ink.any(axis=0)
    for strip in row.strips:
        columns[max(0, strip.left - 1) : strip.right + 1] = False
    places = np.flatnonzero(columns)
    found = []
    start = 0
    for number in range(1, len(places) + 1):
        if number < len(places) and places[number] - places[number - 1] < 1.6 * grid.pitch:
            continue
        left, right = int(places[start]), int(places[number - 1]) + 1
        start = number
        away = min(max(strip.left - right, left - strip.right) for strip in row.strips)
        lone = right - left < 2.5 * grid.pitch
        if (lone and away > _LONELY * grid.pitch) or right - left > 40 * grid.pitch or right - left < 2:
            continue
        height = int(np.ptp(np.flatnonzero(ink[:, left:right].any(axis=1)))) + 1
        if away > 3 * grid.pitch and height < 0.6 * grid.pitch:
            continue  # a line of a frame, or the edge of a cursor
        if 2 <= height < band.height and ink[:, left:right].mean() < 0.8:
            spare = round(0.5 * grid.pitch)
            found.append(replace(whole, left=max(0, left - spare), right=min(pixels.shape[1], right + spare)))
    return found


# ------------------------------------------------------------------------------------------------------------ in cells


@dataclass(frozen=True)
class _Reading:
    """A strip with its cells. `fits` says that nearly every cell with ink has its letter."""

    strip: Strip
    letters: list[Letter]
    cells: list[Cell]

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
    def fits(self) -> bool:
        return bool(self.cells) and self.holes + self.lost <= max(2, 0.2 * len(self.letters))


def _reading(pixels: Pixels, strip: Strip, letters: list[Letter], grid: Grid | None) -> _Reading:
    cells = cells_of(pixels, strip, letters, grid) if grid else []
    return _Reading(strip, letters, _trimmed(cells))


def _in_cells(pixels: Pixels, readings: Sequence[_Reading], grid: Grid) -> list[list[_Word]]:
    words: list[list[_Word]] = [[] for _ in readings]
    doubtful: list[tuple[int, Strip, list[Cell]]] = []
    for number, reading in enumerate(readings):
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
    gaps = gaps_of(pixels, strip, least=0.95 * grid.pitch if grid else 0.0)
    text = ""
    for number, letter in enumerate(letters):
        before = letters[number - 1] if number else None
        if before and not before.text.isspace() and not letter.text.isspace():
            mixed = _narrow(before.text) != _narrow(letter.text) and max(before.text, letter.text) < "\uff00"
            latin = mixed or not (is_wide(before.text) or is_wide(letter.text))
            if latin and any(before.x < gap < letter.x for gap in gaps):
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
