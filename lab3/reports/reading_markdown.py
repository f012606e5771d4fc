"""Markdown → blocks, with markdown-it and what students' editors add: embeds, paths with spaces, indented prose."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from lab3.reports.commands_lines import runs
from lab3.reports.model import BlockKind, Picture
from lab3.reports.reading_blocks import Blocks, is_prose, runs_of
from lab3.reports.reading_fences import LANGUAGES, Mended, mend
from lab3.reports.reading_inline import Inline, SetAside, lenient_pictures, pictures_set_aside, read_inline
from lab3.reports.reading_paragraphs import is_terminal
from lab3.reports.reading_pictures import Pictures
from lab3.reports.reading_tables import add_table

DEEPEST = 5  # of Markdown in indented text or in HTML in Markdown
_LONGEST_HEADING = 100
_LONGEST_LINE = 40_000


def read_markdown(
    text: str,
    pictures: Pictures,
    *,
    attachments: Mapping[str, bytes] | None = None,
    first_line: int | None = 1,
) -> Blocks:
    """The blocks of a text. `attachments`: of a notebook's cell, by name. `first_line` None: it has no lines."""
    short, aside = pictures_set_aside(text)
    reader = _Reader(pictures, aside.with_attachments(attachments or {}))
    reader.read(short, first_line or 0, depth=0)
    if first_line is None:
        reader.blocks.forget_lines()
    return reader.blocks


@dataclass
class _Context:
    """What a token stands in."""

    lists: int = 0
    quotes: int = 0

    @property
    def kind(self) -> BlockKind:
        return "list_item" if self.lists else "quote" if self.quotes else "paragraph"


@dataclass
class _Table:
    line: int
    rows: list[list[Inline]] = field(default_factory=list)


class _Reader:
    def __init__(self, pictures: Pictures, aside: SetAside) -> None:
        self._pictures, self._aside = pictures, aside
        self.blocks = Blocks()

    def read(self, text: str, first_line: int, *, depth: int) -> None:
        """Add the blocks of `text`, whose first line is `first_line` of the file."""
        mended = mend(_shortened(text, self.blocks))
        self.blocks.problems += mended.problems if not depth else []
        parser = _parser()
        environment: dict[str, Any] = {}
        walk = _Walk(self, mended, first_line, depth, parser, environment)
        walk.run(parser.parse(mended.text, environment))

    def picture(self, target: str, alt: str) -> Picture:
        """The picture that a link of this text leads to."""
        data = self._aside.data_of(target)
        if data is not None:
            return self._pictures.embedded(data.data, target=data.name, alt=alt)
        return self._pictures.linked(self._aside.uri_of(target), alt)

    def read_html(self, html: str, line: int, *, depth: int) -> None:
        """Add the blocks of HTML, and of the Markdown between its tags."""
        from lab3.reports.reading_html import read_fragment

        def markdown(text: str, at: int) -> None:
            if depth < DEEPEST:
                self.read(text, at, depth=depth + 1)
            else:
                self.blocks.add("paragraph", text, line=at)

        read_fragment(html, self.blocks, picture=self.picture, line=line, markdown=markdown)


class _Walk:
    """Over the tokens of one text."""

    def __init__(
        self,
        reader: _Reader,
        mended: Mended,
        first_line: int,
        depth: int,
        parser: MarkdownIt,
        environment: dict[str, Any],
    ) -> None:
        self._reader, self._blocks = reader, reader.blocks
        self._mended, self._first_line, self._depth = mended, first_line, depth
        self._parser, self._environment = parser, environment
        self._context = _Context()
        self._table: _Table | None = None
        self._heading = 0

    def run(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self._step(token)

    def _step(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open" | "ordered_list_open" | "bullet_list_close" | "ordered_list_close":
                self._context.lists += token.nesting
            case "blockquote_open" | "blockquote_close":
                self._context.quotes += token.nesting
            case "heading_open":
                self._heading = int(token.tag[1:])
            case "heading_close":
                self._heading = 0
            case "table_open":
                self._table = _Table(line=self._line(token))
            case "tr_open" if self._table:
                self._table.rows.append([])
            case "table_close" if self._table:
                add_table(self._blocks, self._table.rows, line=self._table.line)
                self._table = None
            case "inline" if self._table:
                self._table.rows[-1].append(self._inline(token.children or []))
            case "inline":
                self._paragraph(token)
            case "fence":
                self._fence(token)
            case "code_block":
                self._indented(token)
            case "html_block":
                self._reader.read_html(token.content, self._line(token), depth=self._depth)
            case _:
                pass

    def _line(self, token: Token, *, after: int = 0) -> int:
        """The line of the file at which the token begins, or `after` lines later."""
        return self._first_line + self._mended.place((token.map[0] if token.map else 0) + after)

    def _inline(self, children: Sequence[Token]) -> Inline:
        return read_inline(children, self._reader.picture)

    # --- paragraphs and headings -------------------------------------------------------------------------------------

    def _paragraph(self, token: Token) -> None:
        """A heading, prose, or commands and terminals that nothing marks as code."""
        heading = self._heading if len(token.content) <= _LONGEST_HEADING and "\n" not in token.content else 0
        if heading:
            self._add(self._inline(token.children or []), self._line(token), "heading", level=heading)
            return
        lines = token.content.split("\n")
        plain = "![" not in token.content and "<" not in token.content
        if plain and is_terminal(token.content):
            self._blocks.add("code", token.content, line=self._line(token))
            return
        found = list(runs_of(lines))
        if len(found) == 1 and not found[0].code:
            self._add(self._inline(token.children or []), self._line(token), self._context.kind)
            return
        for run in found:
            line = self._line(token, after=run.first)
            if run.code:
                self._blocks.add("code", run.text, line=line)
            else:
                (inline,) = self._parser.parseInline(run.text, self._environment)
                self._add(self._inline(inline.children or []), line, self._context.kind)

    def _add(self, inline: Inline, line: int, kind: BlockKind, *, level: int = 0) -> None:
        """The texts and pictures of a paragraph, in their order."""
        for part in inline.parts:
            if part.picture is not None:
                self._blocks.add_picture(part.picture, line=line + part.lines)
            else:
                self._blocks.add(kind, part.text, line=line + part.lines, level=level, codes=part.codes, bold=part.bold)

    # --- code --------------------------------------------------------------------------------------------------------

    def _fence(self, token: Token) -> None:
        """The first word after the marks is the language; students put the command itself there, too, or a remark."""
        words = token.info.split()
        first = words[0].strip("{}.").lower() if words else ""
        rest = token.info.strip()
        if first in LANGUAGES:
            rest = token.info.strip()[len(words[0]) :].strip()
        language = first if first in LANGUAGES or (len(words) == 1 and not runs(rest)) else ""
        if runs(rest):
            text = f"{rest}\n{token.content}"
            self._blocks.add("code", text, line=self._line(token), language=language)
            return
        if rest and not language and not rest.isascii():
            self._blocks.add("paragraph", rest, line=self._line(token))
        self._blocks.add("code", token.content, line=self._line(token, after=1), language=language)

    def _indented(self, token: Token) -> None:
        """Text that four spaces make code: prose and Markdown within it are read as what they are."""
        dedented = textwrap.dedent(token.content)
        marked = any(mark in dedented for mark in ("![", "```", "~~~", "<img "))
        if self._depth < DEEPEST and (marked or is_prose(dedented)):
            self._reader.read(dedented, self._line(token), depth=self._depth + 1)
        else:
            self._blocks.add("code", dedented, line=self._line(token))


def _shortened(text: str, blocks: Blocks) -> str:
    """No line is so long that a parser spends its time on it."""
    lines = text.split("\n")
    if max(map(len, lines)) <= _LONGEST_LINE:
        return text
    blocks.problems.append(f"lines of more than {_LONGEST_LINE} characters were cut")
    return "\n".join(line[:_LONGEST_LINE] for line in lines)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    lenient_pictures(parser)
    return parser
