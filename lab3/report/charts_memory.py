"""Memory over time as a curve, with the card, what was predicted, and the moments of the lab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab3.report.charts import WIDTH, Chart, Drawing, shortened, width_of

_LEFT, _RIGHT, _BOTTOM = 52.0, 8.0, 24.0
_PLOT = 170.0  # the plot's height
_ROW, _SMALL = 15.0, 11.0
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the curve is to stay below: a line, or a band where only a range is known. In MiB."""

    low: float
    high: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """`points` are (seconds, MiB); `moments` are (seconds, MiB, name). `card_mib` is the top of the picture."""

    points: Sequence[tuple[float, float]]
    moments: Sequence[tuple[float, float, str]]
    card_mib: float
    card_label: str
    limit: Limit | None = None
    before: bool = False  # the lab's first server, drawn in the colour of what is before


def memory_chart(
    curve: Curve,
    *,
    name: str,
    title: str,
    text: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    last_s: float,
    highest_mib: float,
) -> Chart:
    """The curve up to `last_s` seconds and `highest_mib`, so that two of them can be compared side by side."""
    names = _rows_of_names(curve, last_s)
    top = 24 + _ROW * (max(names, default=-1) + 1)
    drawing = Drawing(name, title=title, text=text, height=top + _PLOT + _BOTTOM)
    scale = _Scale(top=top, last_s=max(last_s, 1.0), highest_mib=max(highest_mib, 1.0))
    _axes(drawing, scale)
    _limits(drawing, scale, curve)
    steps = [(scale.x(seconds), scale.y(mib)) for seconds, mib in curve.points]
    if steps:
        ending = "-before" if curve.before else ""
        floor = scale.y(0)
        drawing.path([(steps[0][0], floor), *steps, (steps[-1][0], floor)], f"c-area{ending}", closed=True)
        drawing.path(steps, f"c-curve{ending}")
    for row, (seconds, mib, moment) in zip(names, curve.moments, strict=True):
        x, y = scale.x(seconds), 12 + _ROW * row
        drawing.line(x, y + 4, x, scale.y(0), "c-moment")
        drawing.dot(x, scale.y(mib), "c-before" if curve.before else "c-after")
        drawing.text(min(x, WIDTH - width_of(moment, size=_SMALL)), y, moment, "c-small")
    return Chart(name=name, title=title, text=text, head=head, rows=tuple(rows), svg=drawing.svg())


@dataclass(frozen=True)
class _Scale:
    top: float
    last_s: float
    highest_mib: float

    def x(self, seconds: float) -> float:
        return _LEFT + _within(seconds / self.last_s) * (WIDTH - _LEFT - _RIGHT)

    def y(self, mib: float) -> float:
        return self.top + (1 - _within(mib / self.highest_mib)) * _PLOT


def _axes(drawing: Drawing, scale: _Scale) -> None:
    for mib in _ticks(scale.highest_mib, 4):
        drawing.line(_LEFT, scale.y(mib), WIDTH - _RIGHT, scale.y(mib), "c-grid")
        drawing.text(_LEFT - 6, scale.y(mib) + 4, f"{mib:g}", "c-small c-soft", anchor="end")
    drawing.text(_LEFT - 6, scale.top - 10, "MiB", "c-small c-soft", anchor="end")
    for seconds in _ticks(scale.last_s, 5):
        x = min(scale.x(seconds), WIDTH - width_of(f"{seconds:g} s", size=_SMALL) / 2)
        drawing.text(x, scale.top + _PLOT + 16, f"{seconds:g} s", "c-small c-soft", anchor="middle")


def _limits(drawing: Drawing, scale: _Scale, curve: Curve) -> None:
    card = scale.y(curve.card_mib)
    drawing.line(_LEFT, card, WIDTH - _RIGHT, card, "c-arrow")
    label = shortened(curve.card_label, WIDTH - _LEFT - _RIGHT - 8, size=_SMALL)
    drawing.text(WIDTH - _RIGHT - 4, card + 13, label, "c-small c-soft", anchor="end")
    if curve.limit is None:
        return
    high, low = scale.y(curve.limit.high), scale.y(curve.limit.low)
    if low - high > 1:
        drawing.rect(_LEFT, high, WIDTH - _LEFT - _RIGHT, low - high, "c-band")
    drawing.line(_LEFT, high, WIDTH - _RIGHT, high, "c-limit")
    # Below the line where the card's own label is above it.
    y = high + 14 if high - card < 30 else high - 6
    y = y + 13 if abs(y - (card + 13)) < 12 else y
    drawing.text(WIDTH - _RIGHT - 4, y, curve.limit.label, "c-small c-bound", anchor="end")


def _rows_of_names(curve: Curve, last_s: float) -> list[int]:
    """For each moment the row in which its name stands, so that no two overlap."""
    scale = _Scale(top=0, last_s=max(last_s, 1.0), highest_mib=1)
    ends: list[float] = []
    rows = []
    for seconds, _, moment in curve.moments:
        wide = width_of(moment, size=_SMALL)
        begin = min(scale.x(seconds), WIDTH - wide)
        row = next((number for number, end in enumerate(ends) if end + 6 <= begin), len(ends))
        ends[row : row + 1] = [begin + wide]
        rows.append(row)
    return rows


def _ticks(most: float, about: int) -> list[float]:
    """Round figures from zero to `most`."""
    rough = most / about
    magnitude = 10.0 ** len(str(int(rough))) / 10
    step = next(each * magnitude for each in _STEPS if each * magnitude >= rough)
    return [number * step for number in range(int(most / step) + 1)]


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
