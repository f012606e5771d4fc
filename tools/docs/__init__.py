"""The parts of the documentation that are read from the source: `python -m tools.docs` writes them into the pages."""

from __future__ import annotations


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. Bars within cells are escaped."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
