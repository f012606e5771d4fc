"""Reports that are no Markdown: notebooks, Word documents, pages."""

from __future__ import annotations

import base64
import html
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

_DATE = (2024, 11, 30, 12, 0, 0)
_WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def text_cell(text: str, **attached: Path) -> dict[str, Any]:
    """A cell of Markdown; `attached` pictures are linked as `attachment:NAME.png`."""
    cell: dict[str, Any] = {
        "cell_type": "markdown",
        "metadata": {},
        "source": text.strip("\n").splitlines(keepends=True),
    }
    if attached:
        cell["attachments"] = {f"{name}.png": {"image/png": _base64(path)} for name, path in attached.items()}
    return cell


def code_cell(code: str, printed: str = "", *pictures: Path) -> dict[str, Any]:
    """A cell of code with what it printed, and pictures that it showed."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    for path in pictures:
        shown = {"image/png": _base64(path), "text/plain": ["<PIL.PngImagePlugin.PngImageFile>"]}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown})
    source = code.strip("\n").splitlines(keepends=True)
    return {"cell_type": "code", "metadata": {}, "execution_count": 1, "source": source, "outputs": outputs}


def notebook(cells: Sequence[dict[str, Any]]) -> str:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps(
        {"cells": list(cells), "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}, ensure_ascii=False, indent=0
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def web_page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>'
    return f"<!DOCTYPE html>\n<html>\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def word_document(parts: Sequence[tuple[str, str] | Path], out: Path) -> None:
    """Write `parts` as .docx: ("1" or "2", heading), ("", paragraph), ("code", lines), or a picture."""
    body: list[str] = []
    relations: list[str] = []
    media: list[tuple[str, Path]] = []
    for part in parts:
        if isinstance(part, Path):
            number = len(media) + 1
            media.append((f"word/media/image{number}{part.suffix}", part))
            relations.append(
                f'<Relationship Id="p{number}" Type="{_RELATIONS}/image" Target="media/image{number}{part.suffix}"/>'
            )
            body.append(_picture(number, *Image.open(part).size))
        else:
            body.extend(_paragraph(part[0], line) for line in part[1].split("\n"))
    files: dict[str, str | Path] = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" '
        'ContentType="application/xml"/><Default Extension="png" ContentType="image/png"/><Override '
        'PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.'
        'document.main+xml"/><Override PartName="/word/styles.xml" ContentType="application/vnd.openxmlformats-'
        'officedocument.wordprocessingml.styles+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="d" '
        f'Type="{_RELATIONS}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'<w:document {_WORD} xmlns:r="{_RELATIONS}" '
        'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><w:body>{"".join(body)}</w:body></w:document>',
        "word/styles.xml": f"<w:styles {_WORD}>"
        + "".join(
            f'<w:style w:type="paragraph" w:styleId="Heading{n}"><w:name w:val="heading {n}"/></w:style>'
            for n in (1, 2)
        )
        + "</w:styles>",
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="s" '
        f'Type="{_RELATIONS}/styles" Target="styles.xml"/>{"".join(relations)}</Relationships>',
        **dict(media),
    }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            data = (
                content.read_bytes()
                if isinstance(content, Path)
                else f'<?xml version="1.0" encoding="UTF-8"?>\n{content}'
            )
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)


def _paragraph(style: str, text: str) -> str:
    properties = f'<w:pPr><w:pStyle w:val="Heading{style}"/></w:pPr>' if style in ("1", "2") else ""
    font = '<w:rPr><w:rFonts w:ascii="Consolas"/></w:rPr>' if style == "code" else ""
    return f'<w:p>{properties}<w:r>{font}<w:t xml:space="preserve">{html.escape(text, quote=False)}</w:t></w:r></w:p>'


def _picture(number: int, width: int, height: int) -> str:
    size = f'cx="{width * 6350}" cy="{height * 6350}"'
    drawing = "http://schemas.openxmlformats.org/drawingml/2006/picture"
    return (
        f'<w:p><w:r><w:drawing><wp:inline><wp:extent {size}/><wp:docPr id="{number}" name="P{number}"/><a:graphic>'
        f'<a:graphicData uri="{drawing}"><pic:pic xmlns:pic="{drawing}"><pic:nvPicPr><pic:cNvPr id="{number}" '
        f'name="image{number}.png"/><pic:cNvPicPr/></pic:nvPicPr><pic:blipFill><a:blip r:embed="p{number}"/>'
        f'<a:stretch><a:fillRect/></a:stretch></pic:blipFill><pic:spPr><a:xfrm><a:off x="0" y="0"/><a:ext {size}/>'
        '</a:xfrm><a:prstGeom prst="rect"><a:avLst/></a:prstGeom></pic:spPr></pic:pic></a:graphicData></a:graphic>'
        "</wp:inline></w:drawing></w:r></w:p>"
    )
