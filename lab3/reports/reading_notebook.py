"""A notebook → blocks: its text, its code, and what its cells printed, with the pictures in both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lab3.errors import UsageError
from lab3.grading.problems import shown
from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_files import without_halves
from lab3.reports.reading_html import read_fragment
from lab3.reports.reading_inline import decoded_base64
from lab3.reports.reading_markdown import read_markdown
from lab3.reports.reading_pictures import Pictures

MOST_CELLS = 2000
MOST_OUTPUTS = 200  # of a cell
_SHELL = ("%%bash", "%%sh", "%%shell", "%%script bash", "%%script sh", "%%cmd")
_PICTURES = ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp", "image/bmp")
_OLD = {"png": "image/png", "jpeg": "image/jpeg", "text": "text/plain", "html": "text/html"}  # format 3's names
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def read_notebook(text: str, pictures: Pictures, *, name: str) -> Blocks:
    """The blocks of the notebook `name`, of the formats 3 and 4. Raises UsageError for what is none."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(name, str(error)) from error
    if not isinstance(notebook, dict):
        raise _broken(name, "it is JSON, and no notebook")
    language = _language(notebook)
    blocks = Blocks()
    cells = list(_cells(notebook))
    if not cells and not isinstance(notebook.get("cells"), list):
        raise _broken(name, "it has no cells")
    if len(cells) > MOST_CELLS:
        blocks.problems.append(f"the notebook has {len(cells)} cells, of which {MOST_CELLS} were read")
    for cell in cells[:MOST_CELLS]:
        _Cell(cell, blocks, pictures, language).read()
    return blocks


def without_escapes(text: str) -> str:
    """What a terminal shows of a program's output: no colours, and of a line that was written over its last state."""
    plain = _ESCAPES.sub("", text).replace("\r\n", "\n")
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in plain.split("\n")]
    return without_halves("\n".join(lines)).replace("\0", "")


class _Cell:
    def __init__(self, cell: Mapping[str, Any], blocks: Blocks, pictures: Pictures, language: str) -> None:
        self._cell, self._blocks, self._pictures, self._language = cell, blocks, pictures, language

    def read(self) -> None:
        source = without_halves(_joined(self._cell.get("source", self._cell.get("input", ""))))
        kind = self._cell.get("cell_type")
        if kind == "markdown":
            attachments = dict(self._attachments())
            self._blocks.extend(read_markdown(source, self._pictures, attachments=attachments, first_line=None))
        elif kind == "heading":  # of format 3
            level = self._cell.get("level", 1)
            self._blocks.add("heading", source, level=level if isinstance(level, int) and 0 < level < 7 else 1)
        elif kind == "code":
            shell = source.lstrip().startswith(_SHELL)
            self._blocks.add("code", source, language="bash" if shell else self._language)
            outputs = self._cell.get("outputs")
            for output in outputs[:MOST_OUTPUTS] if isinstance(outputs, list) else ():
                if isinstance(output, dict):
                    self._output(output)
        else:
            self._blocks.add("paragraph", source)

    def _attachments(self) -> Iterator[tuple[str, bytes]]:
        told = self._cell.get("attachments")
        for name, kinds in told.items() if isinstance(told, dict) else ():
            for body in kinds.values() if isinstance(kinds, dict) else ():
                if (data := decoded_base64(_joined(body))) is not None:
                    yield str(name), data
                    break

    def _output(self, output: Mapping[str, Any]) -> None:
        kind = output.get("output_type")
        if kind in ("stream",):
            self._say(_joined(output.get("text", "")))
        elif kind in ("error", "pyerr"):
            traceback = output.get("traceback")
            lines = traceback if isinstance(traceback, list) else []
            said = "\n".join(map(str, lines)) or f"{output.get('ename', '')}: {output.get('evalue', '')}"
            self._say(said)
        else:
            data = output.get("data")
            self._shown(data if isinstance(data, dict) else {_OLD.get(key, key): output[key] for key in output})

    def _shown(self, data: Mapping[str, Any]) -> None:
        """Of the forms of one output a picture, else a page with pictures or a table, else text."""
        for kind in _PICTURES:
            if kind in data:
                self._picture(_joined(data[kind]), kind)
                return
        html = _joined(data.get("text/html", ""))
        if "<img" in html or "<table" in html or ("text/plain" not in data and html):
            read_fragment(html, self._blocks, picture=self._pictures.linked, line=None)
        elif "text/markdown" in data and "text/plain" not in data:
            read = read_markdown(without_halves(_joined(data["text/markdown"])), self._pictures, first_line=None)
            self._blocks.extend(read)
        else:
            self._say(_joined(data.get("text/plain", "")))

    def _picture(self, body: str, kind: str) -> None:
        target = f"{kind} that a cell shows"
        image = decoded_base64(body)
        if image is None:
            self._blocks.add_picture(self._pictures.missing(target, why="its base64 is broken"))
        else:
            self._blocks.add_picture(self._pictures.embedded(image, target=target))

    def _say(self, text: str) -> None:
        """What one cell prints in pieces is one output."""
        self._blocks.add_output(without_escapes(text))


def _cells(notebook: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    sheets = notebook.get("worksheets")
    for sheet in (notebook, *(sheets if isinstance(sheets, list) else ())):
        cells = sheet.get("cells") if isinstance(sheet, dict) else None
        yield from (cell for cell in (cells if isinstance(cells, list) else ()) if isinstance(cell, dict))


def _language(notebook: Mapping[str, Any]) -> str:
    metadata = notebook.get("metadata")
    told = metadata.get("kernelspec") if isinstance(metadata, dict) else None
    language = told.get("language") if isinstance(told, dict) else None
    return language.lower()[:40] if isinstance(language, str) and language else "python"


def _joined(source: object) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else source if isinstance(source, str) else ""


def _broken(name: str, why: str) -> UsageError:
    return UsageError(f"{shown(name)} is no notebook that can be read", why=shown(why), todo="save the notebook again")
