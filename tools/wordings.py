"""What of a question is wording: two that differ in nothing but numbers, names and punctuation are worded alike."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

from tools import toolcall_phrases as phrases

_FORMULA = re.compile(r"[-(]*\d[\d.]*(?:[\s()]*[-+*/×÷x·][\s(]*-?[\s(]*\d[\d.]*|\))*")


def wording(text: str) -> str:
    """`text` in small letters, its formulas and numbers written as @, and without spaces and punctuation."""
    return re.sub(r"[\s.,:;?!=。，：；？！]+", "", _FORMULA.sub("@", text)).lower()


def is_trained(text: str) -> bool:
    """Whether `text` is worded as a training question is, whatever names, things and numbers are filled in."""
    worded = wording(text)
    return worded in _fixed() or any(pattern.fullmatch(worded) for pattern in _patterns())


@functools.cache
def _templates() -> tuple[str, ...]:
    some = [*phrases.DIRECT.values(), *phrases.STORIES.values(), *phrases.EXPRESSION.values(), *phrases.UNFIT.values()]
    chains = itertools.chain.from_iterable([*phrases.CHAINS.values(), *phrases.CHAIN_STORIES.values()])
    chats = itertools.chain.from_iterable(phrases.CHAT.values())  # where {c} is a city
    found = itertools.chain.from_iterable([*some, *(questions for *_, questions, _ in phrases.OTHERS)])
    return (*found, *(text for text, _ in chains), *(text.replace("{c}", "{w}") for text in chats))


@functools.cache
def _fixed() -> frozenset[str]:
    """The wordings in which nothing but numbers and formulas is filled in."""
    texts = itertools.chain.from_iterable(_expansions(each) for each in _templates() if not _NAMES.search(each))
    return frozenset(wording(re.sub(r"\{[abcde]\}", "7", text)) for text in texts)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """The wordings in which names and things are, these standing for any text."""
    return tuple(re.compile(_pattern(each)) for each in _templates() if _NAMES.search(each))


# In a template: a name or thing; a number; a choice's signs; anything else.
_NAMES = re.compile(r"\{[PQOSvw]\}")
_PIECES = re.compile(rf"(?P<name>{_NAMES.pattern})|(?P<number>\{{[abcd]\}})|(?P<choice>[\[\]|])|(?P<letter>.)")


def _pattern(template: str) -> str:
    found = ""
    for piece in _PIECES.finditer(template):
        if piece["name"]:
            found += ".+"
        elif piece["choice"]:
            found += {"[": "(?:", "]": ")", "|": "|"}[piece["choice"]]
        else:
            found += "@" if piece["number"] else re.escape(wording(piece["letter"]))
    return found


def _expansions(template: str) -> Iterator[str]:
    """Every text of a template's `[x|y]`, innermost first, as the conversations draw them."""
    match = re.search(r"\[([^\[\]]*)\]", template)
    if match is None:
        yield template
        return
    for choice in match[1].split("|"):
        yield from _expansions(template[: match.start()] + choice + template[match.end() :])
