"""The arithmetic that a question, a tool and a result speak of. Nothing is evaluated but digits and + - * ( )."""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lab3.checks import numbers_in
from lab3.evidence import ExpectedCall

Operation = Literal["add", "mul", "sub", "div"]

_SIGNS = str.maketrans({"×": "*", "✕": "*", "✖": "*", "∗": "*", "⋅": "*", "·": "*", "−": "-", "–": "-"})
_TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])")
_CANDIDATE = re.compile(r"[-\d(][\d\s.+\-*()]{1,200}(?<=[\d)])")
_STATED = re.compile(r"\s*=\s*-?\d")  # "3+5=8" tells a result and asks for none
_DATE = re.compile(r"\d+(-\d+){2,}")  # or a telephone's number
_OPERATORS: dict[type[ast.operator], Operation] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}
_MOST = 1e15  # of larger numbers a float does not tell every one
_LONGEST = 20_000  # letters of a text that are looked at

_WORDS: dict[Operation, str] = {
    "add": r"add(?:s|ed|er|ing|ition)?|plus|sums?|total|jia|jiafa",
    "mul": r"mul|mult|multiply|multiplies|multiplied|multiplication|multiplying|times|products?|cheng|chengfa",
    "sub": r"sub|subs|subtract(?:s|ed|ion|ing)?|minus|difference|jian|jianfa",
    "div": r"div|divs?|divide(?:s|d)?|dividing|division|quotient|chu|chufa",
}
_CHINESE: dict[Operation, str] = {"add": "加|求和|之和|总和", "mul": "乘|积", "sub": "减|差", "div": "除|商"}


@dataclass(frozen=True, kw_only=True)
class Expression:
    """An expression found in a text: its value, and the calls that reach it one by one, the inner ones first."""

    text: str
    value: float
    calls: tuple[ExpectedCall, ...]


def read_expression(text: str) -> Expression | None:
    """The longest sum, difference or product that a text asks for (of equally long ones the last), None without one."""
    plain = _TIMES.sub("*", normalized(text))
    found = None
    for match in _CANDIDATE.finditer(plain):
        if _STATED.match(plain, match.end()) or _DATE.fullmatch(match[0].strip()):
            continue
        read = _evaluated(match[0].strip())
        if read and (found is None or len(read.text) >= len(found.text)):
            found = read
    return found


def normalized(text: str) -> str:
    """Full-width forms and typographic signs as ASCII; of a long text the beginning."""
    return unicodedata.normalize("NFKC", text[:_LONGEST]).translate(_SIGNS)


def operation_of(name: str, description: str = "") -> Operation | None:
    """What a tool does, by its name or else by its description; None if these tell nothing, or several things."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name[:_LONGEST])
    return _named(words) or _named(description[:_LONGEST])


def computed(operation: Operation | None, numbers: Sequence[float]) -> float | None:
    """What `add` or `mul` makes of two or more numbers. Others are not judged: their order is a matter of the tool."""
    if len(numbers) < 2 or operation not in ("add", "mul"):
        return None
    value = math.fsum(numbers) if operation == "add" else math.prod(numbers)
    return value if abs(value) < _MOST else None


def numbers_of(value: Any) -> tuple[float, ...]:
    """The numbers in a JSON value, in their order; text that looks like one is none."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return ()
    if isinstance(value, int | float):
        return (float(value),) if abs(value) < _MOST else ()  # also not NaN
    parts = value.values() if isinstance(value, dict) else value
    return tuple(number for part in parts for number in numbers_of(part))


def numbers_told(content: str, *, beside: Iterable[float] = ()) -> tuple[float, ...]:
    """The numbers that a text names `beside` those: "3+5=8" beside 3 and 5 tells 8. All if no others are left."""
    every = [number for number in numbers_in(normalized(content)) if abs(number) < _MOST]
    rest = list(every)
    for number in beside:
        if (at := next((at for at, each in enumerate(rest) if same(each, number)), None)) is not None:
            del rest[at]
    return tuple(rest or every)


def same(one: float, other: float) -> bool:
    """Equal as the results of arithmetic are."""
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def among(number: float | None, others: Iterable[float]) -> bool:
    """Whether it is the same as one of them."""
    return number is not None and any(same(number, each) for each in others)


def _named(text: str) -> Operation | None:
    found = {
        operation
        for operation, words in _WORDS.items()
        if re.search(rf"(?<![A-Za-z])(?:{words})(?![A-Za-z])", text, re.IGNORECASE)
        or re.search(_CHINESE[operation], text)
    }
    return found.pop() if len(found) == 1 else None


def _evaluated(text: str) -> Expression | None:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    calls: list[ExpectedCall] = []
    value = _value(tree, calls)
    return None if value is None or not calls else Expression(text=text, value=value, calls=tuple(calls))


def _value(node: ast.expr, calls: list[ExpectedCall]) -> float | None:
    """The node's value, None for what is no arithmetic of this kind; its calls are put into `calls`."""
    if isinstance(node, ast.Constant):
        return next(iter(numbers_of(node.value)), None)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand, calls)
        return None if inner is None else -inner
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
        return None
    left, right = _value(node.left, calls), _value(node.right, calls)
    if left is None or right is None:
        return None
    operation = _OPERATORS[type(node.op)]
    value = {"add": left + right, "sub": left - right, "mul": left * right}[operation]
    calls.append(ExpectedCall(function=operation, numbers=(left, right)))
    return value if abs(value) < _MOST else None
