"""Pieces of Markdown from text that may be anything: none of it becomes markup, HTML or a link."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lab3.grading.export_text import one_line, visible

# What Markdown and GitHub's dialect of it obey: also a bare URL, an address, and what begins a list.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&@!]|:(?=//)|(?<=www)\.|^[+-]|(?<=^\d)[.)])", re.I)
_FENCE = re.compile(r"`{3,}")
_TICKS = re.compile(r"`+")


def plain(text: object, limit: int = 2000) -> str:
    """Text on one line, that is shown as it stands."""
    return _MARKUP.sub(r"\\\1", one_line(text, limit))


def code(text: object) -> str:
    """Text on one line as code, also in a table."""
    told = one_line(text)
    longest = max((len(run) for run in _TICKS.findall(told)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if told.startswith("`") or told.endswith("`") or not told else ""
    return f"{ticks}{pad}{told}{pad}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """A block of code that its text cannot end."""
    told = visible(text).rstrip("\n")
    longest = max((len(run) for run in _FENCE.findall(told)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks}{language}\n{told}\n{ticks}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are Markdown already, without a bar that is not escaped."""
    lines = [f"| {' | '.join(each or ' ' for each in row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def cell(text: object) -> str:
    """Code in a table, where a bar ends the cell even there."""
    return code(text).replace("|", "\\|")
