"""A report's file, whatever its format, as blocks and pictures in the order of reading. Nothing of it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab3.errors import UsageError
from lab3.grading.problems import shown
from lab3.reports.model import Block, Report
from lab3.reports.reading_blocks import Blocks
from lab3.reports.reading_choosing import Format, choose, format_of
from lab3.reports.reading_files import decoded, read_bytes
from lab3.reports.reading_pictures import Pictures

MOST_BLOCKS = 20_000
MOST_PROBLEMS = 40


def read_report(path: Path, *, fetch: bool = False) -> Report:
    """The report in the file `path`, or in the folder `path` that holds one.

    Pictures that are linked by URL are looked for beside the report, and are fetched only with `fetch`. Raises
    UsageError (what, why, todo) where there is no report or it cannot be read; what is odd about a report that can be
    read is told in its problems.
    """
    chosen = choose(path)
    pictures = Pictures(chosen.file, root=chosen.root, fetch=fetch)
    first = _read(chosen.file, pictures)
    parts = [first]
    for other in chosen.parts:
        part = _read(other, pictures.beside(other))
        heading = Block(kind="heading", text=shown(other.name), level=1)
        parts.append(replace(part, blocks=(heading, *part.blocks)))
    blocks = tuple(block for part in parts for block in part.blocks)
    problems = [*chosen.problems, *(problem for part in parts for problem in part.problems), *pictures.problems()]
    if len(blocks) > MOST_BLOCKS:
        problems.insert(0, f"the report has {len(blocks)} blocks, of which {MOST_BLOCKS} were read")
    return replace(first, blocks=blocks[:MOST_BLOCKS], problems=tuple(dict.fromkeys(problems))[:MOST_PROBLEMS])


def _read(file: Path, pictures: Pictures) -> Report:
    """One file. Anything that a library trips over is the file's fault, and said so."""
    data = read_bytes(file)
    form = format_of(data, file)
    try:
        return _of_format(form, data, file, pictures)
    except UsageError:
        raise
    except (RecursionError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {shown(str(error))}"
        raise _unreadable(file, form, why) from error


def _of_format(form: Format, data: bytes, file: Path, pictures: Pictures) -> Report:
    if form == "docx":
        from lab3.reports.reading_docx import read_docx

        return _report(file, form, "utf-8", read_docx(data, pictures, name=file.name))
    if form == "pdf":
        from lab3.reports.reading_pdf import read_pdf

        return _report(file, form, "", read_pdf(data, pictures, name=file.name))
    text = decoded(data)
    blocks = _of_text(form, text.text, file, pictures)
    report = _report(file, form, text.encoding, blocks)
    return replace(report, problems=(*text.problems, *report.problems))


def _of_text(form: Format, text: str, file: Path, pictures: Pictures) -> Blocks:
    if form == "notebook":
        from lab3.reports.reading_notebook import read_notebook

        return read_notebook(text, pictures, name=file.name)
    if form == "html":
        from lab3.reports.reading_html import read_html

        return read_html(text, pictures)
    if form == "text":
        from lab3.reports.reading_plain import read_plain

        return read_plain(text, pictures)
    from lab3.reports.reading_markdown import read_markdown

    return read_markdown(text, pictures)


def _report(file: Path, form: Format, encoding: str, blocks: Blocks) -> Report:
    return Report(
        path=file, format=form, encoding=encoding, blocks=blocks.with_sections(), problems=tuple(blocks.problems)
    )


def _unreadable(file: Path, form: str, why: str) -> UsageError:
    return UsageError(
        f"{shown(file.name)} cannot be read as {form}", why=why, todo="save it again, or hand it in as Markdown"
    )
