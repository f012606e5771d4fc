"""HTML → blocks: pages, exported notebooks, what Word's documents become, and HTML within Markdown."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning
from bs4.builder import ParserRejectedMarkup
from bs4.element import CData, Comment, Declaration, Doctype, NavigableString, PageElement, ProcessingInstruction, Tag

from lab3.reports.model import BlockKind, Picture
from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_inline import Inline, Part, PictureOf, bare_pictures, pictures_set_aside, source_of
from lab3.reports.reading_paragraphs import add_paragraph
from lab3.reports.reading_pictures import Pictures, is_picture_name
from lab3.reports.reading_tables import add_table

DEEPEST = 150  # of elements in elements; below, only text is read
_MOST_WITH_LINES = 20_000  # characters
_UNSEEN = frozenset(
    [
        "script",
        "style",
        "head",
        "template",
        "noscript",
        "svg",
        "math",
        "button",
        "select",
        "nav",
        "iframe",
        "object",
        "audio",
        "video",
    ]
)
_HEADINGS = frozenset(["h1", "h2", "h3", "h4", "h5", "h6"])
_PARAGRAPHS = frozenset(
    [
        "p",
        "div",
        "section",
        "article",
        "main",
        "header",
        "footer",
        "center",
        "figure",
        "figcaption",
        "details",
        "summary",
        "dl",
        "dt",
        "dd",
        "ul",
        "ol",
        "li",
        "form",
        "fieldset",
        "address",
        "body",
        "html",
        "tr",
        "td",
        "th",
        "tbody",
        "thead",
        "hr",
        "caption",
        "aside",
        "picture",
    ]
)
_BOLD = frozenset(["b", "strong"])
_NUMBERS = frozenset(
    [
        "gutter",
        "linenos",
        "lineno",
        "line-numbers",
        "prompt",
        "input_prompt",
        "output_prompt",
        "jp-inputprompt",
        "jp-outputprompt",
    ]
)
_OUTPUTS = ("output", "jp-outputarea", "jp-renderedtext", "cell-output")
_MARKDOWN_MARKS = ("![", "](", "```", "~~~", "**", "`", "\n#", "\n- ", "|")

MarkdownOf = Callable[[str, int], None]


def read_html(text: str, pictures: Pictures) -> Blocks:
    """The blocks of a page."""
    blocks = Blocks()
    short, aside = pictures_set_aside(text)
    line = 1 if len(short) <= _MOST_WITH_LINES else None

    def picture(target: str, alt: str) -> Picture:
        return pictures.linked(aside.uri_of(target), alt)

    read_fragment(short, blocks, picture=picture, line=line)
    blocks.join_terminals()
    return blocks


def read_fragment(
    html: str, blocks: Blocks, *, picture: PictureOf, line: int | None, markdown: MarkdownOf | None = None
) -> None:
    """Add what `html` shows, whose first line is `line` of the file; `markdown` gets the text between its tags."""
    reader = _Reader(blocks, picture, line, markdown)
    reader.walk(soup_of(html), _Context(), 0)
    reader.flush()


def soup_of(html: str) -> BeautifulSoup:
    """Parsed, whatever it is. Python's own parser knows lines, and takes time that grows with the square of junk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        try:
            return BeautifulSoup(html, "html.parser" if len(html) <= _MOST_WITH_LINES else "lxml")
        except (ParserRejectedMarkup, AssertionError):
            return BeautifulSoup(html, "lxml")


@dataclass(frozen=True, kw_only=True)
class _Context:
    kind: BlockKind = "paragraph"
    level: int = 0
    bold: bool = False
    output: bool = False


class _Reader:
    """Walks over the elements; text is gathered until a block ends."""

    def __init__(self, blocks: Blocks, picture: PictureOf, line: int | None, markdown: MarkdownOf | None) -> None:
        self._blocks, self._picture, self._first_line, self._markdown = blocks, picture, line, markdown
        self._text: list[str] = []
        self._codes: list[str] = []
        self._plain = self._some = False
        self._context = _Context()
        self._line = self._running = line  # of the block that is gathered, and of what is read

    def walk(self, element: Tag, context: _Context, depth: int) -> None:
        for child in element.children:
            self._child(child, context, depth)

    def flush(self) -> None:
        """End the block whose text was gathered."""
        text, codes, bold = "".join(self._text), tuple(self._codes), not self._plain
        self._text, self._codes, self._plain, self._some = [], [], False, False
        context, line = self._context, self._line
        if not text.strip():
            return
        if self._markdown is not None and context.kind != "heading" and any(mark in text for mark in _MARKDOWN_MARKS):
            self._markdown(text.lstrip("\n"), line or 1)
            return
        if self._markdown is None:
            text = _collapsed(text)
        if context.kind == "heading":
            self._blocks.add("heading", " ".join(text.split()), line=line, level=context.level)
        elif context.output:
            self._blocks.add("output", text, line=line)
        else:
            self._prose(text, codes, bold, context.kind, line)

    def _prose(self, text: str, codes: tuple[str, ...], bold: bool, kind: BlockKind, line: int | None) -> None:
        text = text.strip()
        add_paragraph(self._blocks, text, line=line, kind=kind, codes=codes, bold=bold)
        for url in bare_pictures(text):
            self._blocks.add_picture(self._picture(url, ""), line=line)

    def _child(self, child: PageElement, context: _Context, depth: int) -> None:
        if isinstance(child, Tag):
            self._element(child, context, depth)
        elif isinstance(child, NavigableString) and not isinstance(
            child, Comment | CData | Declaration | Doctype | ProcessingInstruction
        ):
            self._say(str(child), context)

    def _say(self, text: str, context: _Context) -> None:
        if not self._some:
            self._context = context
            self._text = []
            if text.strip() and self._running is not None:
                self._line = self._running + text[: len(text) - len(text.lstrip())].count("\n")
        if self._running is not None:
            self._running += text.count("\n")
        if self._markdown is None:
            text = " ".join(text.split("\n")) if "\n" in text else text
        self._text.append(text)
        self._some = self._some or bool(text.strip())
        self._plain = self._plain or (not context.bold and bool(text.strip(" :：\n")))

    def _element(self, element: Tag, context: _Context, depth: int) -> None:
        name = element.name.lower()
        if name in _UNSEEN or _classes(element) & _NUMBERS:
            return
        if depth > DEEPEST:
            self._say(element.get_text(" ")[:10_000], context)
            return
        self._at(element)
        if name == "br":
            self._text.append("\n")
        elif name == "img":
            self._image(element)
        elif name == "pre":
            self._code(element, context)
        elif name == "table":
            self._table(element, context, depth)
        elif name == "a":
            self._link(element, context, depth)
        elif name == "code":
            self._inline_code(element, context, depth)
        else:
            self._within(element, name, context, depth)

    def _at(self, element: Tag) -> None:
        if self._first_line is not None and element.sourceline:
            self._running = self._first_line + element.sourceline - 1

    def _within(self, element: Tag, name: str, context: _Context, depth: int) -> None:
        inner = context
        if name in _HEADINGS:
            inner = _Context(kind="heading", level=int(name[1]))
        elif name == "li":
            inner = _Context(kind="list_item", output=context.output)
        elif name == "blockquote":
            inner = _Context(kind="quote", output=context.output)
        elif name in _BOLD:
            inner = _Context(kind=context.kind, level=context.level, bold=True, output=context.output)
        if any(each in _OUTPUTS for each in _classes(element)):
            inner = _Context(kind=inner.kind, level=inner.level, output=True)
        ends = name in _PARAGRAPHS or name in _HEADINGS or name == "blockquote"
        if ends:
            self.flush()
        self.walk(element, inner, depth + 1)
        if ends:
            self.flush()

    def _image(self, element: Tag) -> None:
        self.flush()
        target = source_of(element.attrs)
        if target:
            self._blocks.add_picture(self._picture(target, str(element.get("alt") or "")), line=self._line_of(element))

    def _link(self, element: Tag, context: _Context, depth: int) -> None:
        target = str(element.get("href") or "")
        text = element.get_text()
        self.walk(element, context, depth + 1)
        if element.find("img") is None and is_picture_name(target) and not bare_pictures(text):
            self.flush()
            self._blocks.add_picture(self._picture(target, text.strip()), line=self._line_of(element))

    def _inline_code(self, element: Tag, context: _Context, depth: int) -> None:
        text = code_text(element)
        if "\n" in text.strip():
            self._code(element, context)
        else:
            self._codes.append(text.strip())
            self._say(text, context)

    def _code(self, element: Tag, context: _Context) -> None:
        self.flush()
        kind: BlockKind = "output" if context.output else "code"
        text = code_text(element).replace("\xa0", " ")
        self._blocks.add(kind, text, line=self._line_of(element), language="" if context.output else _language(element))
        for image in element.find_all("img"):
            self._image(image)

    def _line_of(self, element: Tag) -> int | None:
        known = element.sourceline if self._first_line is not None else None
        return self._first_line + known - 1 if known and self._first_line is not None else None

    # --- tables ------------------------------------------------------------------------------------------------------

    def _table(self, table: Tag, context: _Context, depth: int) -> None:
        """One cell, as highlighters put around code, is none, nor is one that holds a table: a page's layout."""
        self.flush()
        cells = [[cell for cell in _own(row, "td", "th") if not _classes(cell) & _NUMBERS] for row in _own_rows(table)]
        if sum(map(len, cells)) <= 1 or table.find("table") is not None or table.find("pre") is not None:
            for row in cells:
                for cell in row:
                    self.walk(cell, _Context(output=context.output), depth + 1)
                    self.flush()
            return
        line = self._line_of(table)
        add_table(self._blocks, [[self._cell(cell) for cell in row] for row in cells], line=line)

    def _cell(self, cell: Tag) -> Inline:
        parts = [Part(lines=0, text=" ".join(cell.get_text(" ").split()), codes=self._codes_of(cell))]
        for image in cell.find_all("img"):
            if target := source_of(image.attrs):
                parts.append(Part(lines=0, picture=self._picture(target, str(image.get("alt") or ""))))
        return Inline(parts=tuple(parts))

    def _codes_of(self, cell: Tag) -> tuple[str, ...]:
        return tuple(code.get_text().strip() for code in cell.find_all("code"))


def _own(element: Tag, *names: str) -> list[Tag]:
    return [child for child in element.children if isinstance(child, Tag) and child.name in names]


def _own_rows(table: Tag) -> list[Tag]:
    """Not those of a table within."""
    groups = [table, *_own(table, "thead", "tbody", "tfoot")]
    return [row for group in groups for row in _own(group, "tr")]


def code_text(element: Tag) -> str:
    """The text of code, with the line ends that its elements make."""
    pieces: list[str] = []
    for each in element.descendants:
        if isinstance(each, Tag):
            starts = each.name in ("br", "div", "p", "pre", "li", "tr") or "ec-line" in _classes(each)
            if starts and pieces and (each.name == "br" or not pieces[-1].endswith("\n")):
                pieces.append("\n")
        elif isinstance(each, NavigableString) and not isinstance(each, Comment) and not _is_number(each, element):
            pieces.append(str(each))
    return "".join(pieces).strip("\n")


def _is_number(text: NavigableString, within: Tag) -> bool:
    """Whether it is a line's number that a highlighter has put beside the code."""
    parent = text.parent
    while parent is not None and parent is not within:
        if _classes(parent) & _NUMBERS:
            return True
        parent = parent.parent
    return False


def _language(element: Tag) -> str:
    inner = element.find("code")
    for each in (element, inner):
        if each is None:
            continue
        for name in _classes(each):
            for beginning in ("language-", "lang-", "brush:"):
                if name.startswith(beginning):
                    return name.removeprefix(beginning)
        if said := each.get("lang"):
            return str(said).lower()
    return ""


def _classes(element: Tag) -> set[str]:
    told = element.get("class") or ()
    return {each.lower() for each in ([told] if isinstance(told, str) else told)}


def _collapsed(text: str) -> str:
    """As a page shows it: runs of spaces are one."""
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))
