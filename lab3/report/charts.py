"""Charts as SVG: no script, no network, no fonts of their own, and a text and a table that say the same."""

from __future__ import annotations

import math
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from lab3.grading.export_text import one_line

WIDTH = 440  # of every chart, in its own units: readable on a phone, and two stand side by side on a desk
SIZE = 13  # of its letters
_MARGIN = 16  # of a picture that is a file
_SVG = "http://www.w3.org/2000/svg"
# Name → colour on white, colour on black. Both pairs differ in lightness too, for printers and the colour-blind.
PALETTE = {
    "chart-ink": ("#1b1f24", "#e4e9ef"),
    "chart-soft": ("#59636e", "#9aa5b1"),
    "chart-line": ("#d9dde3", "#343c46"),
    "chart-ground": ("#ffffff", "#0f1318"),
    "chart-before": ("#8b98a8", "#7d8a99"),
    "chart-after": ("#0a66c2", "#58a6ff"),
    "chart-third": ("#7a3fc1", "#c297ff"),
    "chart-bound": ("#c2410c", "#ffa657"),
    "chart-bad": ("#a40e26", "#ff9492"),
}
ET.register_namespace("", _SVG)  # so that it is written without a prefix
_RULES = {
    "text": "fill: chart-ink; font: 13px system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'PingFang SC', 'Microsoft YaHei', "
    "'Noto Sans CJK SC', 'WenQuanYi Micro Hei', sans-serif; "
    "paint-order: stroke; stroke: chart-ground; stroke-width: 3px; stroke-linejoin: round",  # legible across lines
    ".c-soft": "fill: chart-soft",
    ".c-small": "font-size: 11px",
    ".c-strong": "font-weight: 600",
    ".c-code": "font-family: ui-monospace, Menlo, Consolas, 'Liberation Mono', monospace; font-size: 12px",
    ".c-track": "fill: chart-line",
    ".c-before": "fill: chart-before",
    ".c-after": "fill: chart-after",
    ".c-third": "fill: chart-third",
    ".c-bound": "fill: chart-bound",
    ".c-area": "fill: chart-after; fill-opacity: .18",
    ".c-area-before": "fill: chart-before; fill-opacity: .3",
    ".c-curve": "fill: none; stroke: chart-after; stroke-width: 2; stroke-linejoin: round",
    ".c-curve-before": "fill: none; stroke: chart-before; stroke-width: 2; stroke-linejoin: round",
    ".c-grid": "stroke: chart-line; stroke-width: 1",
    ".c-limit": "stroke: chart-bound; stroke-width: 2; stroke-dasharray: 6 4",
    ".c-band": "fill: chart-bound; fill-opacity: .2",
    ".c-moment": "stroke: chart-soft; stroke-width: 1; stroke-dasharray: 2 3",
    ".c-arrow": "stroke: chart-ink; stroke-width: 1.5; fill: none",
    ".c-head": "fill: chart-ink",
    ".c-box": "fill: chart-ground; stroke: chart-line; stroke-width: 1",
    ".c-ground": "fill: chart-ground",
    ".c-bad": "fill: chart-bad",
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with what it says in a sentence (`text`) and in full (`head` and `rows`)."""

    name: str  # of its file, and of the ids in it
    title: str
    text: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    svg: str

    def file(self) -> str:
        """The picture as a file, under its title. It is light: a page around it cannot tell it to be dark."""
        style = "\n".join(f"{name} {{ {_coloured(rule, 0)} }}" for name, rule in _RULES.items())
        root = ET.fromstring(self.svg)
        wide, high = WIDTH + 2 * _MARGIN, float(root.attrib["viewBox"].split()[3]) + 3 * _MARGIN + SIZE
        top = -2 * _MARGIN - SIZE
        root.set("viewBox", f"{-_MARGIN} {top} {wide} {high:g}")
        root.set("width", str(wide * 3 // 2))
        ground = {"x": str(-_MARGIN), "y": str(top), "width": str(wide), "height": f"{high:g}", "class": "c-ground"}
        named = ET.Element("text", {"y": str(top + _MARGIN + SIZE), "class": "c-strong"})
        named.text = shortened(self.title, WIDTH)
        styled = ET.Element("style")
        styled.text = style
        for place, each in enumerate((styled, ET.Element("rect", ground), named), 2):  # after title and desc
            root.insert(place, each)
        return ET.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar from zero. `mark` is a second value, drawn as a line across. No bar for what is None or infinite."""

    label: str
    value: float | None
    shown: str
    kind: str = "after"  # before, after or third
    mark: float | None = None


def css() -> str:
    """The style of all charts in a page, which follows the reader's choice of light or dark."""
    light, dark = (" ".join(f"--{name}: {colours[which]};" for name, colours in PALETTE.items()) for which in range(2))
    rules = "\n".join(f".chart {name} {{ {_coloured(rule, None)} }}" for name, rule in _RULES.items())
    return (
        f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media print {{ :root {{ {light} }} }}\n{rules}"
    )


def bar_chart(
    bars: Sequence[Bar],
    *,
    name: str,
    title: str,
    text: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    most: float | None = None,
) -> Chart:
    """Bars below each other, each with its label and its figure above it; `most` is what fills the width."""
    known = [abs(value) for bar in bars for value in (bar.value, bar.mark) if value is not None and _finite(value)]
    full = most if most else max(known, default=1.0) or 1.0
    drawing = Drawing(name, title=title, text=text, height=48 * len(bars) + 4)
    for number, bar in enumerate(bars):
        top = 48 * number
        room = WIDTH - 20 - width_of(bar.shown)
        drawing.text(0, top + 16, shortened(bar.label, room))
        drawing.text(WIDTH, top + 16, bar.shown, "c-strong", anchor="end")
        drawing.rect(0, top + 24, WIDTH, 14, "c-track", round_by=3)
        if bar.value is not None and _finite(bar.value):
            drawing.rect(0, top + 24, _part(bar.value, full), 14, f"c-{bar.kind}", round_by=3)
        if bar.mark is not None and _finite(bar.mark):
            drawing.rect(min(_part(bar.mark, full), WIDTH - 3), top + 20, 3, 22, "c-bound")
    return Chart(name=name, title=title, text=text, head=head, rows=tuple(rows), svg=drawing.svg())


class Drawing:
    """An SVG that grows; what is written into it is escaped, and made visible."""

    def __init__(self, name: str, *, title: str, text: str, height: float) -> None:
        self._root = ET.Element(
            "svg",
            {
                "xmlns": _SVG,
                "viewBox": f"0 0 {WIDTH} {height:g}",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-text",
            },
        )
        for tag, said in (("title", title), ("desc", text)):
            ET.SubElement(self._root, tag, {"id": f"{name}-{'title' if tag == 'title' else 'text'}"}).text = one_line(
                said
            )

    def rect(self, x: float, y: float, width: float, height: float, kind: str, *, round_by: float = 0) -> None:
        corners = {"rx": f"{round_by:g}"} if round_by else {}
        self._add("rect", kind, x=x, y=y, width=max(0.0, width), height=max(0.0, height), **corners)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, steps: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> None:
        drawn = "L".join(f"{_short(x)} {_short(y)}" for x, y in steps)
        self._add("path", kind, d=f"M{drawn}{'Z' if closed else ''}")

    def dot(self, x: float, y: float, kind: str) -> None:
        self._add("circle", kind, cx=x, cy=y, r=3.5)

    def text(self, x: float, y: float, said: str, kind: str = "", *, anchor: str = "start") -> None:
        self._add("text", kind, x=x, y=y, **({} if anchor == "start" else {"text-anchor": anchor})).text = one_line(
            said
        )

    def svg(self) -> str:
        """The whole as text."""
        return ET.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, kind: str, **attributes: float | str) -> ET.Element:
        told = {name: each if isinstance(each, str) else _short(each) for name, each in attributes.items()}
        return ET.SubElement(self._root, tag, ({"class": kind} if kind else {}) | told)


_NARROW = 0.56  # of a Latin letter's height, on average


def width_of(text: str, *, size: float = SIZE) -> float:
    """About how wide a text is, in units of the chart; Chinese letters are twice as wide as Latin ones."""
    return sum(1.0 if unicodedata.east_asian_width(each) in "WF" else _NARROW for each in text) * size


def shortened(text: str, room: float, *, size: float = SIZE) -> str:
    """The text's beginning that fits into `room`, with an ellipsis if that is not all."""
    text = one_line(text)
    if width_of(text, size=size) <= room:
        return text
    text = text[: int(room / (_NARROW * size)) + 1]  # more would not fit, however narrow
    while text and width_of(text + "…", size=size) > room:
        text = text[:-1]
    return text + "…"


def _part(value: float, full: float) -> float:
    return WIDTH * min(1.0, max(0.0, value / full))


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _coloured(rule: str, which: int | None) -> str:
    for name, colours in PALETTE.items():
        rule = rule.replace(f" {name}", f" {f'var(--{name})' if which is None else colours[which]}")
    return rule
