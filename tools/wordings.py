"""What of a question is wording: two questions that differ in nothing but numbers and punctuation are worded alike."""

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


@functools.cache
def trained() -> frozenset[str]:
    """The wordings of all training questions, stories and names filled in apart (those have no end)."""
    found: set[str] = set()
    both = [*phrases.DIRECT.values(), *phrases.EXPRESSION.values(), *phrases.UNFIT.values(), *phrases.CHAT.values()]
    chains = [tuple(text for text, _ in some) for some in phrases.CHAINS.values()]
    for template in itertools.chain.from_iterable([*both, *chains]):
        for text in _expansions(template):
            if not re.search(r"\{[A-Zwxy]\}", text):
                found.add(wording(re.sub(r"\{[abcde]\}", "7", text)))
    return frozenset(found)


def _expansions(template: str) -> Iterator[str]:
    """Every text of a template's `[x|y]`, innermost first, as the conversations draw them."""
    match = re.search(r"\[([^\[\]]*)\]", template)
    if match is None:
        yield template
        return
    for choice in match[1].split("|"):
        yield from _expansions(template[: match.start()] + choice + template[match.end() :])
