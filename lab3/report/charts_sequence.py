"""Who says what to whom, one below the other: the lanes and arrows of a function call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab3.report.charts import WIDTH, Chart, Drawing, shortened, width_of

_STEP, _TOP = 44.0, 40.0
_MOST_STEPS = 24  # that are drawn; the table has them all


@dataclass(frozen=True, kw_only=True)
class Step:
    """An arrow from lane to lane, with what is said. `bad` is what went wrong."""

    begin: int
    end: int
    text: str
    bad: bool = False


def sequence_chart(
    lanes: Sequence[str],
    steps: Sequence[Step],
    *,
    name: str,
    title: str,
    text: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
) -> Chart:
    """The steps from the top down between the lanes."""
    shown = steps[:_MOST_STEPS]
    left_out = len(steps) - len(shown)
    height = _TOP + _STEP * len(shown) + (36 if left_out else 18)
    drawing = Drawing(name, title=title, text=text, height=height)
    each = WIDTH / len(lanes)
    middles = [each * (number + 0.5) for number in range(len(lanes))]
    for middle, lane in zip(middles, lanes, strict=True):
        drawing.line(middle, 26, middle, height, "c-moment")
        drawing.rect(middle - each / 2 + 4, 1, each - 8, 26, "c-box", round_by=5)
        drawing.text(middle, 18, shortened(lane, each - 16), "c-strong", anchor="middle")
    for number, step in enumerate(shown):
        _draw(drawing, step, middles, _TOP + _STEP * number + 26)
    if left_out:
        drawing.text(WIDTH / 2, height - 8, f"… +{left_out}", "c-soft", anchor="middle")
    return Chart(name=name, title=title, text=text, head=head, rows=tuple(rows), svg=drawing.svg())


def _draw(drawing: Drawing, step: Step, middles: Sequence[float], y: float) -> None:
    begin, end = middles[step.begin], middles[step.end]
    way = 1 if end > begin else -1
    drawing.line(begin, y, end - way * 5, y, "c-arrow")
    drawing.path([(end, y), (end - way * 8, y - 4.5), (end - way * 8, y + 4.5)], "c-head", closed=True)
    said = shortened(step.text, WIDTH - 16, size=13.5)
    half = width_of(said, size=13.5) / 2
    middle = min(max((begin + end) / 2, half + 6), WIDTH - half - 6)
    drawing.rect(middle - half - 4, y - 22, 2 * half + 8, 18, "c-ground", round_by=3)
    drawing.text(middle, y - 8, said, "c-code c-bad" if step.bad else "c-code", anchor="middle")
