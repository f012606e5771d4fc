"""Everything that a report's own prose and tables say of the two methods, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab3.reports.model import Place, Report
from lab3.reports.understanding_facts import Statement
from lab3.reports.understanding_text import cell_statements, named_in_order, statements_in
from lab3.reports.understanding_words import sentences_of

_MOST = 20_000  # characters of a block that are read
_RELEVANT = re.compile(
    r"w4a16|awq|kv|quanti[sz]|calibrat|activation|weight|embedding|lm_head|cache|ratio"
    r"|量化|权重|激活|校准|标定|嵌入|输出层|词表|缓存|显存",
    re.I | re.A,
)


@dataclass(frozen=True)
class Said:
    """A statement with its place."""

    statement: Statement
    place: Place


def said_of(report: Report, theirs: frozenset[int]) -> tuple[Said, ...]:
    """The statements in a report's order. `theirs` are blocks that the tutorial wrote."""
    return tuple(_said(report, theirs))


def _said(report: Report, theirs: frozenset[int]) -> Iterator[Said]:
    order: tuple[str, ...] = ()
    for number, block in enumerate(report.blocks):
        if block.kind == "heading":
            order = named_in_order(block.text) or order
        text = block.text[:_MOST]
        if number in theirs or not _RELEVANT.search("\n".join((text, *block.section[-1:]))):
            continue
        if block.kind == "table" and block.rows:
            yield from _in_table(number, block.rows, block.line)
        elif block.kind in ("paragraph", "list_item", "quote"):
            for statement in statements_in(text, label=block.section[-1] if block.section else "", order=order):
                yield Said(statement, Place(block=number, quote=statement.quote, line=block.line))
            for sentence in sentences_of(text):
                order = named_in_order(sentence.text) or order


def _in_table(number: int, rows: tuple[tuple[str, ...], ...], line: int | None) -> Iterator[Said]:
    head = rows[0]
    for row in rows[1:]:
        for column, cell in enumerate(row[: len(head)]):
            if column == 0:
                continue
            for statement in cell_statements(row[0], head[column], cell):
                quote = f"{row[0]} | {head[column]} | {cell}"
                yield Said(
                    Statement(statement.fact, statement.right, quote), Place(block=number, quote=quote, line=line)
                )
