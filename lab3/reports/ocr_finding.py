"""Where the rows of a picture's text are: strips found by the detector, made level and put beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from lab3.reports.ocr_cells import Grid, band_of, baseline_of, ink_of
from lab3.reports.ocr_model import Strip, find_quads, find_strips, strips_of
from lab3.reports.ocr_skew import Upright, upright

if TYPE_CHECKING:
    from lab3.reports.ocr_picture import Pixels

_WANTED_HEIGHT = 30  # pixels of a line of text, for finding it
_MOST_LOOKED_AT = 5_500_000  # pixels
_SMALL = 400  # pixels: what is lower is looked at in twice its size at once
_LONELY = 24  # cells: a single letter so far from all others is an edge of a window


@dataclass(frozen=True)
class Row:
    """Strips that stand beside each other, from the left; all have the row's top and bottom."""

    strips: tuple[Strip, ...]


def find_rows(pixels: Pixels) -> tuple[list[Row], Upright | None]:
    """The rows of text from the top down; with the picture made level, if its rows lean, whose pixels they are then.

    They are looked for once or twice: small letters are found better in a larger picture.
    """
    scale = _first_scale(pixels)
    quads = find_quads(pixels, scale=scale)
    level = upright(pixels, quads)
    if level:
        pixels = level.pixels
        scale = _first_scale(pixels)
        quads = find_quads(pixels, scale=scale)
    height, width = pixels.shape[:2]
    found = strips_of(quads, width=width, height=height)
    tall = median(strip.height for strip in found) if found else _WANTED_HEIGHT / 2 / scale
    better = min(_largest(pixels), 3.0, max(0.5, _WANTED_HEIGHT / tall))
    if better > 1.25 * scale:
        found = find_strips(pixels, scale=better) or found
    return [_grounded(pixels, row) for row in _rows(found)], level


def _first_scale(pixels: Pixels) -> float:
    return min(_largest(pixels), 2.0 if min(pixels.shape[:2]) < _SMALL else 1.0)


def _largest(pixels: Pixels) -> float:
    return math.sqrt(_MOST_LOOKED_AT / (pixels.shape[0] * pixels.shape[1]))


def _rows(strips: Sequence[Strip]) -> list[Row]:
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
    return [Row(tuple(row)) for row in sorted(rows, key=lambda each: (each[0].top, each[0].left))]


def _grounded(pixels: Pixels, row: Row) -> Row:
    """The row with its baseline, which its longest strip tells best."""
    baseline = baseline_of(pixels, max(row.strips, key=lambda each: each.width))
    return Row(tuple(replace(strip, baseline=baseline) for strip in row.strips))


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


def missed_in(pixels: Pixels, row: Row, grid: Grid) -> list[Strip]:
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
