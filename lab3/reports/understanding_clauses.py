"""A clause, read: its words with the method that each speaks of, and what later clauses may leave out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lab3.reports.understanding_words import Token, tokens

Method = Literal["W", "K"]
_OTHERWISE = ("不同", "相比", "不一样", "相反", "的不同")
_INTEGERS = re.compile(r"integer|整数|整型|int\s*16", re.I)


@dataclass
class State:
    """What a later clause may leave out."""

    methods: frozenset[Method] = frozenset()
    explicit: bool = False  # the methods were named in this sentence, or in the label above
    calibration: bool = False  # the sentence spoke of it
    quantizes: bool = False  # the clause before had the verb
    weights: bool = False
    others: bool = False  # what others say


@dataclass
class Clause:
    """A clause, read. `methods` are what it speaks of, at each of its tokens."""

    found: tuple[Token, ...]
    methods: tuple[frozenset[Method], ...]
    state: State
    spoken: frozenset[Method] = field(default_factory=frozenset)
    integers: bool = False  # it speaks of integers: 16 bits of these are quantized, too

    def has(self, *tags: str, of: Method | None = None) -> bool:
        return next(self.at(*tags, of=of), None) is not None

    def at(self, *tags: str, of: Method | None = None) -> Iterator[int]:
        for number, token in enumerate(self.found):
            if token.tag in tags and (of is None or of in self.methods[number]):
                yield number

    def span(self, number: int) -> range:
        """The tokens around one that speak of the same methods."""
        first = last = number
        while first > 0 and self.methods[first - 1] == self.methods[number]:
            first -= 1
        while last + 1 < len(self.found) and self.methods[last + 1] == self.methods[number]:
            last += 1
        return range(first, last + 1)

    def within(self, where: range, *tags: str) -> list[int]:
        return [number for number in where if self.found[number].tag in tags]


def read_clause(part: str, state: State) -> Clause:
    found = tokens(part)
    compared = _compared(part, found)
    named = [
        number
        for number, token in enumerate(found)
        if token.tag in ("W", "K", "OTHER", "BOTH", "NEITHER") and number not in compared
    ]
    subjects = [number for number in named if _is_subject(found, number, named)]
    methods: list[frozenset[Method]] = [state.methods] * len(found)
    if subjects:
        for place, number in enumerate(subjects):
            end = subjects[place + 1] if place + 1 < len(subjects) else len(found)
            mine = _of(found[number])
            start = number
            if place == 0 or (not _has_predicate(found[number + 1 : end]) and place + 1 == len(subjects)):
                start = 0 if place == 0 else subjects[place - 1] + 1
                if place and _has_predicate(found[number + 1 : end]):
                    start = number
                if place and not _has_predicate(found[number + 1 : end]):
                    start = _after_predicate(found, subjects[place - 1], number)
            for each in range(start, end):
                methods[each] = mine
    joined = _joined(found, subjects)
    if joined:
        methods = [frozenset({"W", "K"})] * len(found)
    spoken = frozenset(method for each in methods for method in each) if found else frozenset()
    if subjects:
        state.explicit = True
    return Clause(found, tuple(methods), state, spoken if subjects else frozenset(), bool(_INTEGERS.search(part)))


def _is_subject(found: Sequence[Token], number: int, named: Sequence[int]) -> bool:
    """A KV cache at the end of a clause on W4A16 is what is done to, not who does."""
    following = found[number + 1].tag if number + 1 < len(found) else ""
    if found[number].tag in ("BOTH", "NEITHER"):
        return following not in ("WT", "ACT", "KEYS", "EMB", "CAL")  # "both the weights and the activations"
    if (
        found[number].tag != "K"
        or "quant" in found[number].text.lower()
        or "量化" in found[number].text
        or "int" in found[number].text.lower()
    ):
        return True
    before = [each for each in named if each < number]
    return not before or (
        _has_predicate(found[number + 1 :])
        and not any(token.tag == "KEEP" or token.tag == "HI" for token in found[number + 1 : number + 2])
    )


def _after_predicate(found: Sequence[Token], first: int, last: int) -> int:
    """`… needed for W4A16 but not for KV`: what stands between belongs to the second."""
    return first + 1 if last - first <= 3 else last


def _joined(found: Sequence[Token], subjects: Sequence[int]) -> bool:
    """`W4A16 and KV cache quantization both need …`: two methods side by side before any predicate, or without one."""
    if len(subjects) < 2:
        return False
    one, two = subjects[0], subjects[1]
    kinds = {found[one].tag, found[two].tag}
    before = [token for token in found[:one] if token.tag != "NEED"]  # "with W4A16 and …"
    return kinds == {"W", "K"} and two == one + 1 and not _has_predicate(before)


def _compared(part: str, found: Sequence[Token]) -> frozenset[int]:
    """The methods that are only compared with: `unlike W4A16`, `与W4A16不同`."""
    lowered = part.lower()
    names = []
    for number, token in enumerate(found):
        if token.tag not in ("W", "K"):
            continue
        before, after = lowered[: token.start].rstrip(), lowered[token.start + len(token.text) :].lstrip()
        unlike = number and found[number - 1].tag == "UNLIKE" and token.start - found[number - 1].start < 26
        beside = before.endswith(("与", "和", "跟", "同", "较")) and after[:6].startswith(_OTHERWISE)
        if unlike or beside or before.endswith(("像", "如同", "as with", " like", "just as")):
            names.append(number)
    return frozenset(names)


_PREDICATES = (
    "Q",
    "APPLY",
    "CAL",
    "NEED",
    "ONLINE",
    "LIVE",
    "LESS",
    "MORE",
    "NEG",
    "LOW",
    "WT",
    "ACT",
    "KEYS",
    "ONLY",
    "KEEP",
    "QUARTER",
)


def _has_predicate(found: Sequence[Token]) -> bool:
    return any(token.tag in _PREDICATES for token in found)


def _of(token: Token) -> frozenset[Method]:
    if token.tag == "OTHER":
        return frozenset()
    return {"W": frozenset({"W"}), "K": frozenset({"K"})}.get(token.tag, frozenset({"W", "K"}))  # type: ignore[return-value]


def methods_in(found: Sequence[Token]) -> frozenset[Method]:
    return frozenset(method for token in found if token.tag in ("W", "K") for method in _of(token))


def remember(read: Clause, state: State) -> None:
    if read.found and read.methods[-1]:
        state.methods = read.methods[-1]
    state.calibration = state.calibration or read.has("CAL")
    state.quantizes = read.has("Q", "APPLY", "LOW")
    state.weights = read.has("WT")


def is_label(sentence: str) -> bool:
    return len(sentence) <= 40 and sentence.rstrip().endswith((":", "："))
