"""Tables, and the pictures in their cells, which their columns and rows name."""

from __future__ import annotations

from collections.abc import Sequence

from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_inline import Inline


def add_table(blocks: Blocks, rows: Sequence[Sequence[Inline]], *, line: int | None) -> None:
    """A table, and after it the pictures of its cells, each under what heads its column and its row."""
    texts = tuple(tuple(cell.text for cell in row) for row in rows)
    if any(text for row in texts for text in row):
        codes = tuple(code for row in rows for cell in row for code in cell.codes)
        blocks.add("table", "\n".join(" | ".join(row) for row in texts), line=line, rows=texts, codes=codes)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            for picture in cell.pictures:
                blocks.add_picture(picture, line=line, under=_heads(texts, number, column))


def _heads(texts: Sequence[Sequence[str]], row: int, column: int) -> tuple[str, ...]:
    """The head of the column, else what stands right below; the first text of the row; what stands in the cell."""
    above = [texts[each][column] for each in range(row) if column < len(texts[each])]
    below = [texts[each][column] for each in range(row + 1, min(row + 2, len(texts))) if column < len(texts[each])]
    head = next((text for text in above if text), "") or next((text for text in below if text), "")
    beside = next((text for each, text in enumerate(texts[row]) if text and each != column), "")
    return tuple(dict.fromkeys(text for text in (head, beside, texts[row][column]) if text))
