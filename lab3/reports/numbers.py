"""Figures with units in prose, the changes that a text claims, and the sums it writes down."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

MIB, GIB = 1 << 20, 1 << 30

_NUMBER = r"(?<![A-Za-z0-9_.])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
_UNIT = r"(GiB|GB|G|MiB|MB|M|个?G|个?M|％|%|倍|times|[xX]\b)"
_FIGURE = re.compile(rf"{_NUMBER}\s*{_UNIT}(?![A-Za-z0-9])")
_ABOUT = re.compile(
    r"(?:约|大约|大概|近|将近|接近|左右|差不多|几乎|about|around|roughly|approximately|approx\.?|nearly|almost"
    r"|some|~|≈)\s*$",
    re.I | re.A,
)
_ABOUT_AFTER = re.compile(r"^\s*(?:左右|上下|多|or so)")
_LESS = re.compile(
    r"减少|减小|减低|降低|下降|缩小|缩减|缩|节省|节约|省|少|小了|reduc|sav(?:e|ed|es|ing)|shr[aiu]nk|drop"
    r"|decreas|smaller|less|lower|fell|cut",
    re.I | re.A,
)
_MORE = re.compile(r"增加|增大|上升|增长|多了|大了|涨|increas|grew|larger|more|higher", re.I | re.A)
_TO = re.compile(
    r"(?:减少|减小|降低|下降|缩小|缩减|降|减|缩|变|压缩|增加|增大|上升|涨)\s*(?:到|至|为|成)|变(?:为|成)|只剩"
    r"|到了?\s*$|至\s*$"
    r"|\b(?:down |up )?to\b|\binto\b|->|→|—>|=>|-->|～|成了|只有",
    re.I | re.A,
)
_OF = re.compile(
    r"原来的|原先的|原模型的|原始(?:模型|大小)?的|之前的|的?大小是|of (?:the|its) (?:old|original|size|former"
    r"|previous)|是原来|为原来",
    re.I | re.A,
)
_OF_AFTER = re.compile(
    r"^\s*(?:of (?:the |its )?(?:old|original|former|previous|full|size|baseline|fp16|bf16|first))", re.I | re.A
)

_SIGNS = str.maketrans("−–‘’“”", "--''\"\"")

Unit = Literal["G", "M", "%", "times"]


@dataclass(frozen=True)
class Figure:
    """A figure of a text. `half` is half of its last digit, in its own unit; `loose` if it says "about"."""

    value: float
    half: float
    unit: Unit
    written: str  # the unit as written
    start: int
    end: int
    text: str
    loose: bool = False

    def bytes_between(self) -> tuple[tuple[float, float], ...]:
        """(least, most) bytes that it may stand for: in powers of 2 and, unless written GiB or MiB, of 10."""
        scales = {"G": (GIB, 1e9, 1000 * MIB), "M": (MIB, 1e6)}[self.unit]  # G: people divide nvidia-smi's MiB by 1000
        if "i" in self.written:
            scales = scales[:1]
        low, high = self.span()
        return tuple((low * scale, high * scale) for scale in scales)

    def span(self) -> tuple[float, float]:
        """(least, most) in its own unit, by its digits; a tenth more where it says "about"."""
        room = max(self.half, 0.1 * self.value if self.loose else 0.0)
        return self.value - room, self.value + room


@dataclass(frozen=True)
class Claim:
    """A change that a text claims: `less`/`more` by a figure, `share` (to so many percent of it), or `from_to`."""

    kind: Literal["less", "more", "share", "from_to", "factor"]
    figure: Figure
    to: Figure | None
    text: str


@dataclass(frozen=True)
class Sum:
    """Arithmetic in a text, `3.6 - 1.5 = 2.1`: what it says and what it comes to. `right` bears with rounding."""

    text: str
    stated: float
    computed: float
    right: bool


def figures_in(text: str) -> tuple[Figure, ...]:
    """The figures with a unit of memory, percent or times."""
    return tuple(_figures(as_ascii(text)))


def claims_in(sentence: str) -> tuple[Claim, ...]:
    """The changes that a sentence claims of something it measured."""
    plain = as_ascii(sentence)
    figures = list(_figures(plain))
    found: list[Claim] = []
    taken: set[int] = set()
    for one, two in pairwise(figures):
        between = plain[one.end : two.start]
        if {one.unit, two.unit} <= {"G", "M"} and len(between) <= 24 and _TO.search(between) and not _stop(between):
            found.append(Claim("from_to", one, two, plain))
            taken |= {one.start, two.start}
    for figure in figures:
        if figure.start in taken:
            continue
        before = _near(plain[: figure.start])
        after = plain[figure.end : figure.end + 24]
        if figure.unit == "%" and (_OF.search(before) or _OF_AFTER.search(after) or _to_just_before(before)):
            found.append(Claim("share", figure, None, plain))
        elif _to_just_before(before):
            continue  # "down to 1.5G" says where it ends, and not by how much it fell
        elif figure.unit in ("G", "M", "%") and _by(_LESS, before, after):
            found.append(Claim("less", figure, None, plain))
        elif figure.unit in ("G", "M", "%") and _by(_MORE, before, after):
            found.append(Claim("more", figure, None, plain))
    return tuple(found)


_TERM = r"\(?\s*\d+(?:\.\d+)?\s*(?:GiB|GB|G|MiB|MB|M|％|%)?\s*\)?"
_EQUATION = re.compile(
    rf"(?<![A-Za-z0-9_.)\]*/×÷+\-=^%])(?P<left>{_TERM}(?:\s*[-+*/×÷xX]\s*{_TERM}){{1,6}})"
    r"\s*(?P<sign>=|≈|约等于|约为|等于)\s*(?P<right>-?\d+(?:\.\d+)?)\s*(?P<unit>GiB|GB|G|MiB|MB|M|％|%)?"
    r"(?![\d.]*\s*[-+*/×÷xX^]\s*[\d(])"
)


def sums_in(text: str) -> tuple[Sum, ...]:
    """The sums that a text writes down with their result."""
    return tuple(found for match in _EQUATION.finditer(as_ascii(text)) if (found := _sum(match)) is not None)


# -------------------------------------------------------------------------------------------------------------- helpers


def _figures(plain: str) -> Iterator[Figure]:
    for match in _FIGURE.finditer(plain):
        digits, written = match[1].replace(",", ""), match[2]
        unit: Unit = (
            "%"
            if written in "％%"
            else "times"
            if written in ("倍", "times", "x", "X")
            else "G"
            if "G" in written
            else "M"
        )
        decimals = len(digits.partition(".")[2])
        loose = bool(_ABOUT.search(plain[: match.start()])) or bool(_ABOUT_AFTER.match(plain[match.end() :]))
        yield Figure(float(digits), 0.5 * 10**-decimals, unit, written, match.start(), match.end(), match[0], loose)


def _sum(match: re.Match[str]) -> Sum | None:
    left, stated = match["left"], float(match["right"])
    percent = match["unit"] in ("%", "％")
    bare = re.sub(r"GiB|GB|G|MiB|MB|M|\s", "", left)
    bare = bare.translate(str.maketrans("×xX÷−–", "***/--"))
    bare = re.sub(r"(\d+(?:\.\d+)?)[%％]", r"(\1/100)", bare)
    parts = re.findall(r"\d+(?:\.\d+)?", bare)
    if "(" in bare and bare.count("(") != bare.count(")"):
        return None
    values = [value for value in (_value(bare), _left_to_right(bare)) if value is not None]
    if not values:
        return None
    decimals = len(match["right"].partition(".")[2])
    room = 0.51 * 10**-decimals + sum(0.5 * 10 ** -len(each.partition(".")[2]) for each in parts if "." in each)
    if match["sign"] != "=":
        room += 0.1 * abs(stated)
    room = max(room, 0.02 * abs(stated))
    scales: tuple[float, ...] = (100.0, 1.0) if percent or "%" in left else (1.0, 1 / 1024, 1 / 1000, 1024.0)
    if not percent and not re.search(r"[GM]", left):
        scales = (1.0,)
    right = any(abs(value * scale - stated) <= room for value in values for scale in scales)
    return Sum(re.sub(r"\s+", " ", match[0]).strip(), stated, values[0] * (100.0 if percent else 1.0), right)


def _value(expression: str) -> float | None:
    """The value of digits, + - * / and parentheses; nothing else is looked at."""
    try:
        return _node(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _node(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        one, two = _node(node.left), _node(node.right)
        if isinstance(node.op, ast.Add):
            return one + two
        if isinstance(node.op, ast.Sub):
            return one - two
        if isinstance(node.op, ast.Mult):
            return one * two
        if isinstance(node.op, ast.Div):
            return one / two
    raise ValueError(type(node).__name__)


def _left_to_right(expression: str) -> float | None:
    """As a pocket calculator takes it, and as some write it."""
    if "(" in expression:
        return None
    parts = re.split(r"([-+*/])", expression)
    value = float(parts[0])
    for sign, digits in zip(parts[1::2], parts[2::2], strict=False):
        other = float(digits)
        if sign == "/" and other == 0:
            return None
        value = {"+": value + other, "-": value - other, "*": value * other, "/": value / (other or 1)}[sign]
    return value


def as_ascii(text: str) -> str:
    """Full-width forms and typographic signs as ASCII, each character in its place."""
    folded = (unicodedata.normalize("NFKC", each) for each in text)
    kept = "".join(new if len(new) == 1 else old for new, old in zip(folded, text, strict=True))
    return kept.translate(_SIGNS)


def _near(before: str) -> str:
    """The clause up to the figure, of at most 28 characters."""
    return re.split(r"[,，。;；、]", before)[-1][-28:]


def _to_just_before(before: str) -> bool:
    tail = re.sub(
        r"(?:约|大约|大概|近|about|around|roughly|only|了|原来的|原先的|\s|~|≈)+$", "", before, flags=re.I | re.A
    )
    ends = [match.end() for match in _TO.finditer(tail)]
    return bool(ends) and ends[-1] >= len(tail) - 1


def _by(words: re.Pattern[str], before: str, after: str) -> bool:
    """The word of change stands right before the figure or right after it."""
    close = list(words.finditer(before))
    if close and len(before) - close[-1].end() <= 14 and not _FIGURE.search(before[close[-1].end() :]):
        return True
    follows = re.match(rf"\s*(?:的\s*)?(?:文件大小|显存|空间|体积)?\s*(?:{words.pattern})", after, re.I | re.A)
    return follows is not None


def _stop(between: str) -> bool:
    return bool(re.search(r"[。;；]|而|但|but|while|whereas", between))
