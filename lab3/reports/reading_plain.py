"""Plain text → blocks: Markdown, if it is written like it, else paragraphs between empty lines."""

from __future__ import annotations

from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_markdown import read_markdown
from lab3.reports.reading_paragraphs import add_paragraph
from lab3.reports.reading_pictures import Pictures, is_picture_name


def read_plain(text: str, pictures: Pictures) -> Blocks:
    """The blocks of a text. A line that is a picture's name or URL shows it."""
    if any(mark in text for mark in ("![", "```", "~~~", "<img")) or text.startswith("# ") or "\n## " in text:
        return read_markdown(text, pictures)
    return read_lines(text.split("\n"), pictures)


def read_lines(lines: list[str], pictures: Pictures) -> Blocks:
    """Paragraphs, commands and terminals, pictures that are named in a line of their own."""
    blocks = Blocks()
    gathered: list[str] = []
    begun = 1
    for number, line in enumerate([*lines, ""], 1):
        named = is_picture_name(line.strip()) and 4 < len(line.strip()) < 300
        if named or not line.strip():
            if gathered:
                add_paragraph(blocks, "\n".join(gathered), line=begun)
            gathered, begun = [], number + 1
        if named:
            blocks.add_picture(pictures.linked(line.strip()), line=number)
        elif line.strip():
            gathered.append(line)
    return blocks
