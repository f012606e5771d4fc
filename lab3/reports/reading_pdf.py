"""A PDF → blocks: lines of text and pictures in the order of their place; a page that is only a scan is a picture."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab3.errors import UsageError
from lab3.grading.problems import shown
from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_files import without_halves
from lab3.reports.reading_images import MOST_PIXELS
from lab3.reports.reading_paragraphs import add_paragraph
from lab3.reports.reading_pictures import MOST_PICTURES, Pictures

MOST_PAGES = 200
_MOST_LETTERS = 50_000  # of a page
_SCAN_DOTS = 2.5  # a point of a scanned page becomes so many pixels, 180 to an inch
_SMALLEST = 24  # pixels; smaller pictures are dots and lines of a layout
_HEADING = 1.2  # times as large as the usual letters
_PAGE_NUMBER = 8  # characters


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A line of text, or a picture, with its place on the page in points from the lower left."""

    left: float
    bottom: float
    right: float
    top: float
    text: str = ""
    size: float = 0.0  # of its letters, in points
    picture: bytes = b""
    why: str = ""
    width: int = 0  # in pixels


def read_pdf(data: bytes, pictures: Pictures, *, name: str) -> Blocks:
    """The blocks of the PDF `name`, whose lines are pages. Raises UsageError if it is broken or needs a password."""
    import pypdfium2

    blocks = Blocks()
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        why = "it needs a password" if "assword" in str(error) else shown(str(error))
        raise UsageError(
            f"{shown(name)} is no PDF that can be read", why=why, todo="export it again, without a password"
        ) from error
    try:
        count = len(document)
        if count > MOST_PAGES:
            blocks.problems.append(f"the PDF has {count} pages, of which {MOST_PAGES} were read")
        for number in range(min(count, MOST_PAGES)):
            try:
                page = document[number]
            except pypdfium2.PdfiumError:
                blocks.problems.append(f"page {number + 1} cannot be read")
                continue
            try:
                _Page(page, number + 1, blocks, pictures).read()
            finally:
                page.close()
    finally:
        document.close()
    blocks.join_terminals()
    return blocks


class _Page:
    def __init__(self, page: Any, number: int, blocks: Blocks, pictures: Pictures) -> None:
        self._page, self._number, self._blocks, self._pictures = page, number, blocks, pictures

    def read(self) -> None:
        lines = list(self._lines())
        images, covered = self._images()
        letters = sum(each.isprintable() and not "\ue000" <= each <= "\uf8ff" for line in lines for each in line.text)
        width, height = self._page.get_size()
        if len(lines) > 3 and letters * 2 < sum(len(line.text) for line in lines):
            lines, letters = [], 0  # its letters are drawn, and do not say which they are
        if letters <= _PAGE_NUMBER and (covered > 0.5 * width * height or (not images and self._has_shapes())):
            self._scan(width, height)
            return
        usual = statistics.median([line.size for line in lines]) if lines else 0.0
        gathered: list[_Piece] = []
        for piece in sorted([*lines, *images], key=lambda each: (-each.top, each.left)):
            if not piece.text:
                self._say(gathered, usual)
                gathered = []
                self._show(piece)
            elif gathered and self._apart(gathered[-1], piece, usual):
                self._say(gathered, usual)
                gathered = [piece]
            else:
                gathered.append(piece)
        self._say(gathered, usual)

    # --- text --------------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[_Piece]:
        """Lines from the top down: pieces of text beside each other are one line, with spaces as wide as the gaps."""
        text_page = self._page.get_textpage()
        try:
            pieces = list(_pieces(text_page))
        finally:
            text_page.close()
        row: list[_Piece] = []
        for piece in sorted(pieces, key=lambda each: (-(each.top + each.bottom), each.left)):
            middle = (piece.top + piece.bottom) / 2
            if row and not (min(each.bottom for each in row) < middle < max(each.top for each in row)):
                yield _joined(row)
                row = []
            row.append(piece)
        if row:
            yield _joined(row)

    def _apart(self, above: _Piece, piece: _Piece, usual: float) -> bool:
        """Whether a paragraph ends between two lines: by the gap, or by another size of letters."""
        gap = above.bottom - piece.top
        return gap > 0.6 * max(usual, piece.size) or _is_large(piece, usual) != _is_large(above, usual)

    def _say(self, lines: list[_Piece], usual: float) -> None:
        if not lines:
            return
        text = "\n".join(line.text for line in lines)
        if len(lines) == 1 and len(text) < 80 and _is_large(lines[0], usual):
            self._blocks.add("heading", text, line=self._number, level=1 if lines[0].size > 1.6 * usual else 2)
        elif not (len(lines) == 1 and text.strip(" -/第页共of").isdigit() and len(text) <= _PAGE_NUMBER):
            paragraph = Blocks()
            add_paragraph(paragraph, text, line=None)
            paragraph.put_on(self._number)
            self._blocks.extend(paragraph)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def _images(self) -> tuple[list[_Piece], float]:
        """The page's pictures, and how much of it they cover, in square points."""
        import pypdfium2.raw as raw

        found: list[_Piece] = []
        covered = 0.0
        for each in self._page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=8):
            try:
                left, bottom, right, top = each.get_bounds()
                width, height = each.get_px_size()
            except Exception:  # pdfium says of some what they are and not where
                continue
            if min(width, height) < _SMALLEST or len(found) >= MOST_PICTURES:
                continue
            covered += max(0.0, right - left) * max(0.0, top - bottom)
            data, why = _image_bytes(each, width, height)
            piece = _Piece(left=left, bottom=bottom, right=right, top=top, picture=data, why=why, width=width)
            found.append(piece)
        return [self._whole(group) for group in _strips(found)], covered

    def _whole(self, strips: list[_Piece]) -> _Piece:
        """A picture that was cut into strips, as the page shows it; most are not cut."""
        first = strips[0]
        if len(strips) == 1:
            return first
        bottom, (page_width, page_height) = strips[-1].bottom, self._page.get_size()
        crop = (
            max(0.0, first.left),
            max(0.0, bottom),
            max(0.0, page_width - first.right),
            max(0.0, page_height - first.top),
        )
        scale = min(8.0, first.width / max(1.0, first.right - first.left))
        data = _png(self._page.render(scale=scale, crop=crop))
        return replace(first, bottom=bottom, picture=data, why="")

    def _show(self, piece: _Piece) -> None:
        target = f"picture on page {self._number}"
        if piece.why:
            self._blocks.add_picture(self._pictures.missing(target, why=piece.why), line=self._number)
        else:
            self._blocks.add_picture(self._pictures.embedded(piece.picture, target=target), line=self._number)

    def _has_shapes(self) -> bool:
        return next(iter(self._page.get_objects(max_depth=2)), None) is not None

    def _scan(self, width: float, height: float) -> None:
        scale = min(_SCAN_DOTS, (MOST_PIXELS / 4 / max(1.0, width * height)) ** 0.5)
        data = _png(self._page.render(scale=scale))
        self._blocks.problems.append(f"page {self._number} is a scan, and is read as a picture")
        target = f"page {self._number}"
        self._blocks.add_picture(self._pictures.embedded(data, target=target), line=self._number)


def _image_bytes(image: Any, width: int, height: int) -> tuple[bytes, str]:
    """The picture as it is stored, if that is JPEG, else as PNG; or why it cannot be had."""
    if width * height > MOST_PIXELS:
        return b"", f"it has {width} x {height} pixels, more than lab3 looks at"
    try:
        if image.get_filters() == ["DCTDecode"]:
            stored = io.BytesIO()
            image.extract(stored)
            return stored.getvalue(), ""
        data = _png(image.get_bitmap(render=False))
    except Exception as error:  # pdfium's, and PIL's
        return b"", f"the picture is damaged: {shown(str(error), 100)}"
    return data, ""


def _png(bitmap: Any) -> bytes:
    stream = io.BytesIO()
    bitmap.to_pil().convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _strips(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Pictures of one width that touch, one right below the other, are one that was cut."""
    groups: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda each: (round(each.left), each.width, -each.top)):
        above = groups[-1][-1] if groups else None
        touches = (
            above is not None
            and above.width == piece.width
            and abs(above.left - piece.left) < 0.5
            and abs(above.right - piece.right) < 0.5
            and abs(above.bottom - piece.top) < 0.3
        )
        if touches:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _pieces(text_page: Any) -> Iterator[_Piece]:
    """What pdfium takes for lines, letter by letter: it puts in the spaces and line ends that a PDF does not hold."""
    import pypdfium2.raw as raw

    letters: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    sizes: list[float] = []
    count = min(text_page.count_chars(), _MOST_LETTERS)
    for number in range(count + 1):
        code = raw.FPDFText_GetUnicode(text_page, number) if number < count else ord("\n")
        if code in (10, 13):
            text = " ".join(without_halves("".join(letters)).split())
            if text and boxes:
                yield _Piece(
                    left=min(box[0] for box in boxes),
                    bottom=min(box[1] for box in boxes),
                    right=max(box[2] for box in boxes),
                    top=max(box[3] for box in boxes),
                    text=text,
                    size=statistics.median(sizes),
                )
            letters, boxes, sizes = [], [], []
        elif code > 31 and code not in (0xFFFE, 0xFFFF):
            letters.append(chr(code))
            if not chr(code).isspace():
                boxes.append(text_page.get_charbox(number, loose=True))
                sizes.append(raw.FPDFText_GetFontSize(text_page, number))


def _joined(row: list[_Piece]) -> _Piece:
    row = sorted(row, key=lambda each: each.left)
    text = row[0].text
    for one, other in itertools.pairwise(row):
        letter = max(1.0, one.size * 0.5)
        spaces = round((other.left - one.right) / letter)
        text += " " * max(0 if other.left - one.right < 0.3 * letter else 1, min(spaces, 40)) + other.text
    return _Piece(
        left=row[0].left,
        right=max(each.right for each in row),
        bottom=min(each.bottom for each in row),
        top=max(each.top for each in row),
        text=text,
        size=max(each.size for each in row),
    )


def _is_large(piece: _Piece, usual: float) -> bool:
    return usual > 0 and piece.size > _HEADING * usual
