"""Terminals and editors set letters in cells of one width. Their ink tells where each stands, and if OCR lost one.

A model for text reads `internlm2-chat-20b` as `internlm2-chat-2b`, and is sure of it; the cells show eighteen letters.
They also tell how many spaces a gap is, and that a thin bar at the bottom of a cell is an underscore.
"""

from __future__ import annotations

import cmath
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from lab3.reports.ocr_model import Letter, Strip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lab3.reports.ocr_picture import Pixels

    Ink = NDArray[np.bool_]

_FAINTEST = 22  # of 255: what less differs from the ground is no ink
_SHARE_OF_STRONGEST = 0.33
_STEPS = 161  # widths tried within ±4 % of the first guess
_LEAST_LETTERS = 12
_MOSTLY = 0.6  # of a row's letters
_LEAST_RHYTHM = 0.07  # of the ink's weight at the cells' frequency; thin letters have 0.15, thick ones 0.4
_SHARPEST = 2.0  # times as strong as at widths that do not fit
_OTHER_WIDTHS = (0.79, 0.83, 0.87, 1.13, 1.18, 1.23, 1.28)
_SPACE_OF_HEIGHT = 0.2  # of a strip's height, which is 1.2 to 1.4 em
_WIDE_OF_HEIGHT = 0.28
_LIKE_SHAPES = {"\\": "1lI|/i!tVN", ">": "VvSs7»›》〉)?"}  # what OCR takes them for, where they stand alone
_QUOTES = ("'", '"')
_LOW_SIGNS = (".", ",")
_UPPER_SIGNS = ("^", "°", "*", "~", "-", "¨", "`")
_PITCH_OF_EM = 0.6  # of DejaVu Sans Mono, Liberation Mono, Menlo and Courier; Consolas has 0.55
_MISSED, _EXTRA = 0.9, 1.1  # costs, in cells, of a cell without a letter and of a letter without a cell


@dataclass(frozen=True)
class Grid:
    """Cells `pitch` pixels wide; `phase` is the middle of one of them, if all rows share it."""

    pitch: float
    phase: float | None


@dataclass(frozen=True)
class Cell:
    """A cell of a row: empty, or with a letter, or with ink that no letter was read for (then `letter` is None)."""

    middle: float
    inked: bool
    shape: str = ""  # what its ink looks like, if that is one of `_`, `\\`, `>`, quotes, `.` and `,`
    letter: Letter | None = None

    @property
    def text(self) -> str:
        """Its letter; where the ink has a shape of its own, that. Empty for a hole."""
        if self.letter is None or self.shape == "_":
            return self.shape or (self.letter.text if self.letter else "")
        if self.shape in _QUOTES:
            return self.letter.text if self.letter.text in _UPPER_SIGNS else self.shape
        if self.shape in _LOW_SIGNS:
            return self.shape if self.letter.text.isalnum() else self.letter.text
        alike = self.letter.text in _LIKE_SHAPES.get(self.shape, "")
        return self.shape if self.shape and (alike or self.letter.sure < 0.6) else self.letter.text

    @property
    def hole(self) -> bool:
        """Whether a letter stands there that is not known."""
        return self.inked and self.letter is None and not self.shape


def ink_of(pixels: Pixels, strip: Strip) -> Ink:
    """Where the strip differs from its own ground, by any colour."""
    import numpy as np

    cut = pixels[strip.top : strip.bottom, strip.left : strip.right].astype(np.int16)
    ground = np.median(cut.reshape(-1, 3), axis=0)
    apart: Any = np.abs(cut - ground).max(axis=2)
    strongest = float(np.percentile(apart, 98)) if apart.size else 0.0
    return np.asarray(apart > max(_FAINTEST, _SHARE_OF_STRONGEST * strongest))


def gaps_of(pixels: Pixels, strip: Strip, *, least: float = 0.0, wide: bool = False) -> list[float]:
    """The middles of the gaps that may be spaces between words: `least` pixels wide, and a part of the height.

    `wide`: only those that no two letters of a word have between them, such as `l` and `o`.
    """
    import numpy as np

    places = np.flatnonzero(ink_of(pixels, strip).any(axis=0))
    apart = np.diff(places)
    share = _WIDE_OF_HEIGHT if wide else _SPACE_OF_HEIGHT
    found = np.flatnonzero(apart > max(least, share * strip.height))
    return [strip.left + float(places[each] + places[each + 1]) / 2 + 0.5 for each in found]


def find_grid(pixels: Pixels, strips: Sequence[Strip], told: Sequence[Sequence[Letter]]) -> Grid | None:
    """The cells of a picture's text, or None if its letters are of many widths, or too few to tell."""
    import numpy as np

    guesses = [guess for letters in told for guess in _widths(letters)]
    if sum(len(letters) for letters in told) < _LEAST_LETTERS or not guesses:
        return None
    guess = median(guesses)
    near = [each for each in guesses if abs(each - guess) < 0.12 * guess]
    if len(near) < 0.6 * len(guesses):
        return None
    shares = [sum(each.text.isascii() for each in letters) / max(4, len(letters)) for letters in told]
    # Chinese is as wide as two cells; where no row is without it, those with little of it tell.
    least = 1.0 if any(share == 1 for share in shares) else _MOSTLY
    profiles = [
        (strip.left, ink_of(pixels, strip).sum(axis=0))
        for strip, share in zip(strips, shares, strict=True)
        if share >= least
    ]
    if not profiles:
        return None
    tried = np.linspace(guess * 0.96, guess * 1.04, _STEPS)
    waves = [[_wave(profile, left, pitch) for left, profile in profiles] for pitch in tried]
    strengths = [sum(abs(wave) for wave in each) for each in waves]
    best = int(np.argmax(strengths))
    weight = float(sum(profile.sum() for _, profile in profiles)) or 1.0
    pitch = float(tried[best])
    others = [sum(abs(_wave(profile, left, pitch * share)) for left, profile in profiles) for share in _OTHER_WIDTHS]
    if strengths[best] < max(_LEAST_RHYTHM * weight, _SHARPEST * median(others)):
        return None
    together = sum(waves[best])
    shared = abs(together) > 0.85 * strengths[best]
    return Grid(pitch, _phase(together, pitch) if shared else None)


def rhythm_of(letters: Sequence[Letter], grid: Grid) -> float:
    """How well letters keep the cells' distance, from 0 to 1, wherever the first of them stands."""
    places = [each.x for each in _halves(letters, grid.pitch) if each.text]
    return abs(sum(cmath.exp(2j * math.pi * x / grid.pitch) for x in places)) / max(1, len(places))


def baseline_of(pixels: Pixels, strip: Strip) -> int:
    """The first row below the letters' feet: where there is most ink, and right below it least."""
    import numpy as np

    ink = ink_of(pixels, strip).sum(axis=1).astype(np.int64)
    if len(ink) < 4:
        return strip.bottom
    lower = len(ink) // 2
    drops = ink[lower - 1 : -1] - ink[lower:]
    return strip.top + lower + int(np.argmax(drops))


def band_of(strip: Strip, grid: Grid, height: int) -> Strip:
    """What belongs to the row alone, from the top of its brackets to its underscores."""
    em = grid.pitch / _PITCH_OF_EM
    top = max(0, round(strip.baseline - 0.84 * em))
    return replace(strip, top=top, bottom=min(height, max(top + 4, round(strip.baseline + 0.34 * em))))


def cells_of(pixels: Pixels, row: Strip, letters: Sequence[Letter], grid: Grid) -> list[Cell]:
    """The row's cells from its first ink to its last, with the letters that stand in them."""
    band = band_of(row, grid, pixels.shape[0])
    band = replace(band, right=min(pixels.shape[1], math.ceil(row.right + grid.pitch)))
    ink = ink_of(pixels, band)
    phase = grid.phase
    if phase is None:
        phase = _phase(_wave(ink.sum(axis=0), row.left, grid.pitch), grid.pitch)
    first = math.ceil((row.left - phase) / grid.pitch + 0.25)
    last = math.floor((row.right - phase) / grid.pitch - 0.25)
    cells = [
        _cell(ink, phase + number * grid.pitch, grid.pitch, band.left, row.baseline - band.top)
        for number in range(first, last + 2)
    ]
    if cells and cells[-1].shape != "_":  # the models do not see an underscore at the end
        cells.pop()
    while cells and not cells[0].inked:
        cells.pop(0)
    while cells and not cells[-1].inked:
        cells.pop()
    return _filled(cells, list(_halves(letters, grid.pitch)), grid.pitch)


def _halves(letters: Sequence[Letter], pitch: float) -> Iterator[Letter]:
    """The letters that are no spaces; a wide one fills two cells, the second with nothing."""
    for each in letters:
        if is_wide(each.text):
            yield replace(each, x=each.x - pitch / 2)
            yield Letter("", each.sure, each.x + pitch / 2)
        elif not each.text.isspace():
            yield each


def is_wide(letter: str) -> bool:
    """Whether a terminal gives it two cells."""
    return unicodedata.east_asian_width(letter[:1] or " ") in "WF"


def _cell(ink: Ink, middle: float, pitch: float, left: int, feet: int) -> Cell:
    """What the ink in the inner half of a cell looks like; what leans in from its neighbours is left out."""
    import numpy as np

    begin = max(0, round(middle - 0.26 * pitch - left))
    end = max(begin + 1, round(middle + 0.26 * pitch - left))
    inner: Any = ink[:, begin:end]
    rows = np.flatnonzero(inner.any(axis=1))
    if not len(rows):
        return Cell(middle, False)
    low = rows[0] >= feet and rows[-1] - rows[0] <= max(1, 0.2 * pitch)
    if low and bool(inner.any(axis=0).all()):
        return Cell(middle, True, shape="_")
    em = pitch / _PITCH_OF_EM
    most: Any = ink[:, max(0, round(middle - 0.38 * pitch - left)) : max(1, round(middle + 0.38 * pitch - left))]
    filled = np.flatnonzero(most.any(axis=1))
    if filled[0] >= feet - 0.24 * em and rows[-1] - rows[0] < 0.42 * em:
        return Cell(middle, True, shape="," if rows[-1] > feet + 0.04 * em else ".")
    if filled[-1] < feet - 0.38 * em and rows[-1] - rows[0] >= 0.2 * pitch:
        return Cell(middle, True, shape=_quote(most, pitch))
    whole: Any = ink[:, max(0, round(middle - 0.5 * pitch - left)) : max(1, round(middle + 0.5 * pitch - left))]
    return Cell(middle, True, shape="\\" if _falls(whole, pitch) else ">" if _points(whole, pitch) else "")


def _quote(cell: Ink, pitch: float) -> str:
    """One stroke or two, where ink is in the upper part of a cell alone."""
    import numpy as np

    columns = np.flatnonzero(cell.any(axis=0))
    two = bool((np.diff(columns) > 1).any()) or float(np.ptp(columns)) + 1 > 0.5 * pitch
    return '"' if two else "'"


def _falls(ink: Ink, pitch: float) -> bool:
    """Whether it is one stroke from the upper left to the lower right."""
    import numpy as np

    down, across = np.nonzero(ink)
    if len(down) < 6 or np.ptp(down) < 1.1 * pitch or np.ptp(across) < 0.5 * pitch:
        return False
    together: Any = np.corrcoef(down, across)
    return bool(together[0, 1] > 0.9)


def _points(ink: Ink, pitch: float) -> bool:
    """Whether it is a hook that points to the right, as the prompt of a continued command does."""
    import numpy as np

    down, across = np.nonzero(ink)
    if len(down) < 6 or not 0.5 * pitch < np.ptp(down) + 1 < 1.25 * pitch or np.ptp(across) < 0.55 * pitch:
        return False
    middle = (down.min() + down.max()) / 2
    if not np.ptp(np.abs(down - middle)):
        return False
    together: Any = np.corrcoef(-np.abs(down - middle), across)
    even = abs(float((down < middle).mean()) - float((down > middle).mean())) < 0.2
    return bool(together[0, 1] > 0.8) and even


def _filled(cells: list[Cell], letters: list[Letter], pitch: float) -> list[Cell]:
    """Each letter in the cell that it stands in: the cheapest way to put them in order into the cells with ink."""
    places = [number for number, cell in enumerate(cells) if cell.inked]
    rows, columns = len(letters), len(places)
    costs = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for row in range(1, rows + 1):
        costs[row][0] = row * _EXTRA
    for column in range(1, columns + 1):
        costs[0][column] = costs[0][column - 1] + _empty_cost(cells[places[column - 1]])
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            away = abs(letters[row - 1].x - cells[places[column - 1]].middle) / pitch
            costs[row][column] = min(
                costs[row - 1][column - 1] + _misfit(away, letters[row - 1], cells[places[column - 1]]),
                costs[row - 1][column] + _EXTRA,
                costs[row][column - 1] + _empty_cost(cells[places[column - 1]]),
            )
    filled = list(cells)
    row, column = rows, columns
    while row and column:
        cell = cells[places[column - 1]]
        away = abs(letters[row - 1].x - cell.middle) / pitch
        if math.isclose(costs[row][column], costs[row - 1][column - 1] + _misfit(away, letters[row - 1], cell)):
            filled[places[column - 1]] = Cell(cell.middle, True, cell.shape, letters[row - 1])
            row, column = row - 1, column - 1
        elif math.isclose(costs[row][column], costs[row][column - 1] + _empty_cost(cell)):
            column -= 1
        else:
            row -= 1
    for number in range(1, len(filled)):
        before, cell = filled[number - 1], filled[number]
        if not cell.inked and before.letter and is_wide(before.letter.text):
            filled[number] = Cell(cell.middle, True, "", Letter("", before.letter.sure, cell.middle))
    return filled


def _empty_cost(cell: Cell) -> float:
    return 0.3 if cell.shape == "_" else _MISSED


def _misfit(away: float, letter: Letter, cell: Cell) -> float:
    odd = 0.5 if (cell.shape == "_") != (letter.text in "_-—~") else 0.0
    return min(away * away, 4.0) + odd


def _widths(letters: Sequence[Letter]) -> list[float]:
    """The mean distance of neighbours in each run of ASCII letters."""
    found: list[float] = []
    run: list[Letter] = []
    for each in [*letters, Letter(" ", 0.0, 0.0)]:
        if each.text.isascii() and not each.text.isspace():
            run.append(each)
            continue
        if len(run) >= 4:
            found.append((run[-1].x - run[0].x) / (len(run) - 1))
        run = []
    return [each for each in found if each > 2]


def _wave(profile: Any, left: float, pitch: float) -> complex:
    import numpy as np

    places = (np.arange(len(profile)) + left + 0.5) * (2 * math.pi / pitch)
    return complex((profile * np.cos(places)).sum(), (profile * np.sin(places)).sum())


def _phase(wave: complex, pitch: float) -> float:
    return cmath.phase(wave) / (2 * math.pi) * pitch
