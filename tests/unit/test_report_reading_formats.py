"""Reports that are no Markdown: notebooks, pages, Word documents, PDFs and plain texts."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lab3.errors import UsageError
from lab3.reports import reading_docx
from lab3.reports.model import Report
from lab3.reports.reading import read_report

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_PLACED = "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"
_PICTURES = "http://schemas.openxmlformats.org/drawingml/2006/picture"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(width: int = 60) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 40), (0, 90, 0)).save(stream, "PNG")
    return stream.getvalue()


def base64_png() -> str:
    return base64.b64encode(png()).decode()


def read(folder: Path, name: str, data: str | bytes) -> Report:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return read_report(folder / name)


def told(report: Report) -> list[tuple[str, str]]:
    """(kind, text) of each block; of a picture whether it is at hand."""
    return [
        (block.kind, ("there" if block.picture.path else block.picture.why) if block.picture else block.text)
        for block in report.blocks
    ]


# --- notebooks --------------------------------------------------------------------------------------------------------


def notebook(*cells: dict[str, object]) -> str:
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def code(source: str, *outputs: dict[str, object]) -> dict[str, object]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def test_a_notebook_has_its_text_its_code_and_what_it_printed(tmp_path: Path):
    text = {"cell_type": "markdown", "source": ["# Lab\n", "\n", "Size:"]}
    printed = {"output_type": "stream", "name": "stdout", "text": ["1.5G\t", "m\n"]}
    report = read(tmp_path, "a.ipynb", notebook(text, code("!du -sh m", printed)))

    assert told(report) == [("heading", "Lab"), ("paragraph", "Size:"), ("code", "!du -sh m"), ("output", "1.5G\tm")]
    assert report.format == "notebook"
    assert report.blocks[2].language == "python"
    assert report.blocks[3].section == ("Lab", "Size:")


def test_a_cell_of_bash_is_bash(tmp_path: Path):
    assert read(tmp_path, "a.ipynb", notebook(code("%%bash\nls"))).blocks[0].language == "bash"


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "display_data", "data": {"image/png": base64_png(), "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"image/png": [base64_png()[:40] + "\n", base64_png()[40:]]}},
        {"output_type": "display_data", "data": {"text/html": f"<img src='data:image/png;base64,{base64_png()}'>"}},
        {"output_type": "pyout", "png": base64_png()},
    ],
)
def test_a_picture_that_a_cell_shows_is_one(tmp_path: Path, output: dict[str, object]):
    assert told(read(tmp_path, "a.ipynb", notebook(code("show()", output))))[1] == ("image", "there")


def test_an_attachment_of_a_cell_is_a_picture(tmp_path: Path):
    cell = {
        "cell_type": "markdown",
        "source": "![](attachment:a.png)",
        "attachments": {"a.png": {"image/png": base64_png()}},
    }

    assert told(read(tmp_path, "a.ipynb", notebook(cell))) == [("image", "there")]


def test_an_error_is_output_without_its_colours(tmp_path: Path):
    error = {"output_type": "error", "ename": "E", "evalue": "x", "traceback": ["\x1b[0;31mTraceback\x1b[0m", "E: x"]}

    assert told(read(tmp_path, "a.ipynb", notebook(code("f()", error))))[1] == ("output", "Traceback\nE: x")


def test_of_a_bar_that_was_drawn_again_and_again_the_last_is_shown(tmp_path: Path):
    printed = {"output_type": "stream", "text": "0%\r50%\r100%\ndone\n"}

    assert told(read(tmp_path, "a.ipynb", notebook(code("f()", printed))))[1] == ("output", "100%\ndone")


def test_an_old_notebook_is_read(tmp_path: Path):
    sheet = {"cells": [{"cell_type": "code", "input": ["1 + 1"], "outputs": [{"output_type": "pyout", "text": "2"}]}]}
    report = read(tmp_path, "a.ipynb", json.dumps({"worksheets": [sheet], "nbformat": 3}))

    assert told(report) == [("code", "1 + 1"), ("output", "2")]


# --- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_has_its_blocks_in_order(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    page = """<!doctype html><html><head><title>no</title><style>no</style></head><body>
<h1>Lab</h1><p>Some <b>bold</b> text</p>
<pre><code class="language-bash">du -sh *</code></pre>
<ul><li>one</li><li>two</li></ul><img src="a.png"><script>no</script></body></html>"""
    report = read(tmp_path, "a.html", page)

    assert told(report) == [
        ("heading", "Lab"),
        ("paragraph", "Some bold text"),
        ("code", "du -sh *"),
        ("list_item", "one"),
        ("list_item", "two"),
        ("image", "there"),
    ]
    assert [block.line for block in report.blocks] == [2, 2, 3, 4, 4, 4]
    assert report.blocks[2].language == "bash"


@pytest.mark.parametrize(
    "html",
    [
        "<pre>ls<br>du -sh m</pre>",
        "<pre><div>ls</div><div>du -sh m</div></pre>",
        "<pre><pre class=CodeMirror-line>ls</pre><pre class=CodeMirror-line>du -sh m</pre></pre>",
        "<table><tr><td class=gutter><pre>1\n2</pre></td><td class=code><pre>ls\ndu -sh m</pre></td></tr></table>",
        "<pre><span class=linenos>1 </span>ls\n<span class=linenos>2 </span>du -sh m</pre>",
        "<pre>ls\ndu&nbsp;-sh m\n</pre>",
    ],
)
def test_code_keeps_its_lines_and_loses_its_numbers(tmp_path: Path, html: str):
    assert told(read(tmp_path, "a.html", html)) == [("code", "ls\ndu -sh m")]


def test_what_an_exported_notebook_printed_is_output(tmp_path: Path):
    page = "<div class=jp-OutputArea><div class=jp-OutputPrompt>Out[1]:</div><pre>1.5G m</pre></div>"

    assert told(read(tmp_path, "a.html", page)) == [("output", "1.5G m")]


def test_a_picture_that_is_loaded_late_is_one(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    page = '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="a.png">'

    assert told(read(tmp_path, "a.html", page)) == [("image", "there")]


def test_a_page_in_a_file_of_another_name_is_a_page(tmp_path: Path):
    assert read(tmp_path, "report", "<!DOCTYPE html><h2>Lab</h2>").format == "html"


# --- Word -------------------------------------------------------------------------------------------------------------


def docx(body: str, picture: bytes | None = None) -> bytes:
    relations = f'<Relationship Id="r1" Type="{_RELATIONS}/image" Target="media/a.png"/>' if picture else ""
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" ContentType='
        '"application/xml"/><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.'
        'relationships+xml"/><Default Extension="png" ContentType="image/png"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r1" Type='
        f'"{_RELATIONS}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">{relations}</Relationships>',
        "word/document.xml": f'<w:document xmlns:w="{_WORD}" xmlns:a="{_DRAWING}" xmlns:r="{_RELATIONS}" '
        f'xmlns:pic="{_PICTURES}" xmlns:wp="{_PLACED}"><w:body>{body}</w:body></w:document>',
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
        if picture is not None:
            archive.writestr("word/media/a.png", picture)
    return stream.getvalue()


def paragraph(text: str, style: str = "") -> str:
    looks = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{looks}<w:r><w:t>{text}</w:t></w:r></w:p>"


_PICTURE = (
    "<w:p><w:r><w:drawing><wp:inline><a:graphic><a:graphicData><pic:pic><pic:blipFill>"
    '<a:blip r:embed="r1"/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r></w:p>'
)


def test_a_word_document_has_its_text_and_its_pictures(tmp_path: Path):
    body = paragraph("显存：") + _PICTURE + paragraph("lmdeploy chat /m --tp 1") + paragraph("结束了。")
    report = read(tmp_path, "作业.docx", docx(body, png()))

    assert told(report) == [
        ("paragraph", "显存："),
        ("image", "there"),
        ("code", "lmdeploy chat /m --tp 1"),
        ("paragraph", "结束了。"),
    ]
    assert report.format == "docx"
    assert report.blocks[1].section == ("显存：",)


def test_a_terminal_that_was_pasted_line_by_line_is_one(tmp_path: Path):
    lines = ["root@h:~# du -sh *", "3.6G    base", "1.5G    quantized", "It is smaller."]
    report = read(tmp_path, "a.docx", docx("".join(map(paragraph, lines))))

    assert told(report) == [
        ("code", "root@h:~# du -sh *\n3.6G base\n1.5G quantized"),
        ("paragraph", "It is smaller."),
    ]


def test_a_picture_that_the_document_only_links_is_not_at_hand(tmp_path: Path):
    report = read(tmp_path, "a.docx", docx(_PICTURE.replace("r:embed", "r:link"), png()))

    assert [picture.path for picture in report.pictures] in ([], [None])


def test_a_document_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading_docx, "_MOST_XML", 500)
    with pytest.raises(UsageError, match="no Word document"):
        read(tmp_path, "a.docx", docx(paragraph("x" * 1000)))


# --- PDF --------------------------------------------------------------------------------------------------------------


def pdf(*pages: str) -> bytes:
    """Pages of these content streams, with a font /F and a picture /P."""
    picture = png(width=40)
    pixels = Image.open(io.BytesIO(picture)).convert("RGB").tobytes()
    kids = " ".join(f"{5 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /XObject /Subtype /Image /Width 40 /Height 40 /ColorSpace /DeviceRGB /BitsPerComponent 8 /Length "
        + f"{len(pixels)} >>\nstream\n".encode()
        + pixels
        + b"\nendstream",
    ]
    for number, content in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 600] /Contents {6 + 2 * number} 0 R /Resources "
            "<< /Font << /F 3 0 R >> /XObject << /P 4 0 R >> >> >>".encode()
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream".encode())
    data = b"%PDF-1.4\n"
    starts = []
    for number, body in enumerate(objects, 1):
        starts.append(len(data))
        data += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode()


def line(text: str, top: int, size: int = 12, left: int = 40) -> str:
    return f"BT /F {size} Tf {left} {top} Td ({text}) Tj ET "


def image(top: int, width: int = 100, height: int = 60) -> str:
    return f"q {width} 0 0 {height} 40 {top} cm /P Do Q "


def test_a_pdf_has_lines_and_pictures_in_the_order_of_their_place(tmp_path: Path):
    content = (
        line("after the picture", 300)
        + image(400)
        + line("Memory of the card", 500)
        + line("before the picture", 484)
        + line("Lab", 560, 24)
    )
    report = read(tmp_path, "a.pdf", pdf(content, line("second page", 500)))

    assert told(report) == [
        ("heading", "Lab"),
        ("paragraph", "Memory of the card\nbefore the picture"),
        ("image", "there"),
        ("paragraph", "after the picture"),
        ("paragraph", "second page"),
    ]
    assert [block.line for block in report.blocks] == [1, 1, 1, 1, 2]


def test_texts_beside_each_other_are_one_line(tmp_path: Path):
    report = read(tmp_path, "a.pdf", pdf(line("quantized", 500, left=200) + line("3.6G", 500)))

    assert report.blocks[0].text.split() == ["3.6G", "quantized"]


def test_a_page_that_is_only_a_scan_is_a_picture(tmp_path: Path):
    report = read(tmp_path, "a.pdf", pdf(image(0, 400, 600)))

    assert told(report) == [("image", "there")]
    with Image.open(report.pictures[0].path) as scan:
        assert scan.size == (1000, 1500)
    assert report.problems == ("page 1 is a scan, and is read as a picture",)


def test_a_picture_that_was_cut_into_strips_is_one(tmp_path: Path):
    report = read(tmp_path, "a.pdf", pdf(line("Memory of the card", 500) + image(300) + image(240) + image(100)))

    assert [kind for kind, _ in told(report)] == ["paragraph", "image", "image"]
    with Image.open(report.pictures[0].path) as whole:
        assert whole.size == (40, 48)


def test_the_same_pdf_gives_the_same_pictures(tmp_path: Path):
    content = line("Memory of the card", 500) + image(300)
    one, other = (read(tmp_path, name, pdf(content)).pictures[0].digest for name in ("a.pdf", "b.pdf"))

    assert one == other


# --- plain texts ------------------------------------------------------------------------------------------------------


def test_a_text_has_paragraphs_terminals_and_pictures_by_name(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png())
    report = read(tmp_path, "report.txt", "Some words.\n\n$ du -sh m\n1.5G    m\n\na.png\n")

    assert told(report) == [("paragraph", "Some words."), ("code", "$ du -sh m\n1.5G    m"), ("image", "there")]
    assert [block.line for block in report.blocks] == [1, 3, 6]


def test_markdown_in_a_text_is_markdown(tmp_path: Path):
    report = read(tmp_path, "report.txt", "# Lab\n\n```\nls\n```\n")

    assert (report.format, told(report)) == ("text", [("heading", "Lab"), ("code", "ls")])
