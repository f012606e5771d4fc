"""A paragraph without any markup: prose, or commands and terminals that were pasted as they are."""

from __future__ import annotations

from lab3.reports.model import BlockKind
from lab3.reports.reading_blocks import Blocks, looks_like_code, runs_of


def is_terminal(text: str) -> bool:
    """Whether a paragraph is what a terminal shows, or an object that Python printed."""
    several = sum(bool(line.strip()) for line in text.split("\n")) > 1
    return (several and looks_like_code(text)) or text.lstrip().startswith(("ChatCompletion(", ">>> "))


def add_paragraph(
    blocks: Blocks,
    text: str,
    *,
    line: int | None,
    kind: BlockKind = "paragraph",
    codes: tuple[str, ...] = (),
    bold: bool = False,
) -> None:
    """The paragraph as one block, or as several where commands stand in it."""
    if is_terminal(text):
        blocks.add("code", text, line=line, loose=True)
        return
    found = list(runs_of(text.split("\n")))
    if len(found) == 1 and not found[0].code:
        blocks.add(kind, text, line=line, codes=codes, bold=bold)
        return
    for run in found:
        at = None if line is None else line + run.first
        if run.code:
            blocks.add("code", run.text, line=at, loose=True)
        else:
            blocks.add(kind, run.text, line=at, codes=codes)
