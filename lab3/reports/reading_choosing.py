"""Which file of a folder is the report, and what format a file has: by what it holds, then by its name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab3.errors import UsageError
from lab3.grading.files import list_files
from lab3.grading.problems import shown
from lab3.reports.reading_files import decoded, read_bytes

Format = Literal["markdown", "notebook", "html", "docx", "pdf", "text"]

_FORMATS: dict[str, Format] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdown": "markdown",
    ".mkd": "markdown",
    ".ipynb": "notebook",
    ".docx": "docx",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".txt": "text",
}
_OTHER_FORMATS = {
    ".doc": "an old Word document",
    ".rtf": "rich text",
    ".odt": "an OpenDocument text",
    ".pages": "a document of Apple's Pages",
    ".wps": "a WPS document",
    ".pptx": "slides",
    ".zip": "an archive",
    ".rar": "an archive",
    ".7z": "an archive",
    ".gz": "an archive",
    ".tar": "an archive",
}
_OF_THE_LAB = ("lmdeploy", "internlm", "w4a16", "kv cache", "kv-cache", "量化", "显存", "function call", "api_server")
_NAMES = ("homework", "作业", "report", "报告", "实验", "lab3", "lab", "task", "任务", "关卡", "笔记", "note", "hw")
_NO_REPORTS = (
    "requirements",
    "license",
    "licence",
    "notice",
    "merges",
    "vocab",
    "constraints",
    "changelog",
    "contributing",
)
_COPIES = ("copy", "副本", "复制", "backup", "备份", "bak", "old", "draft", "草稿", "旧", "(1)", "(2)")
_NUMERALS = "一二三四五六七八九"
_PARTS = (
    "task",
    "任务",
    "part",
    "部分",
    "question",
    "题",
    "step",
    "步",
)  # not "lab": another lab's report is none of this
_MOST_LOOKED_AT = 60
_LOOKED_AT_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The report's file, the other files that go on with it, and the folder that its pictures are looked for in."""

    file: Path
    root: Path
    parts: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    file: Path
    format: Format
    words: int  # of the lab, that it uses
    pictures: bool
    characters: int
    unread: bool = False  # its text is not looked at before it is chosen


def choose(path: Path) -> Chosen:
    """Raises UsageError if `path` is neither a report nor a folder with one."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(str(path))} is no path", why=str(error), todo="pass a file or a folder") from error
    if is_file:
        return Chosen(file=path.resolve(), root=path.resolve().parent)
    if not is_folder:
        raise UsageError(f"there is no {shown(str(path))}", todo="pass a report, or the folder that holds one")
    root = path.resolve()
    files = [file for file in list_files(root).files if not _is_none(file)]
    found = [candidate for file in _readable(files)[:_MOST_LOOKED_AT] if (candidate := _looked_at(file))]
    if not found:
        raise _no_report(path, files)
    first, *rest = sorted(found, key=lambda each: _rank(each, root))
    parts = _parts(first, rest)
    left = [each for each in rest if each.file not in parts and _goes_on(each, first)]
    told = tuple(f"{shown(each.file.name)} speaks of the lab, too, and was not read" for each in left[:5])
    if parts:
        names = ", ".join(shown(part.name) for part in parts)
        told = (f"the report goes on in {names}: line numbers are of each file", *told)
    return Chosen(file=first.file, root=root, parts=parts, problems=told)


def format_of(data: bytes, file: Path) -> Format:
    """The format of `data`, by what it begins with, else by the file's suffix. Raises UsageError if it is none."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return _of_archive(data, file)
    if data.startswith((b"\xd0\xcf\x11\xe0", b"{\\rtf")):
        raise _other(file, "an old Word document" if data[0] == 0xD0 else "rich text")
    if _is_picture(data):
        raise _other(file, "a picture")
    suffix = file.suffix.lower()
    if suffix in _FORMATS and _FORMATS[suffix] not in ("docx", "pdf"):
        return _FORMATS[suffix]
    if suffix in _OTHER_FORMATS:
        raise _other(file, _OTHER_FORMATS[suffix])
    if head[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    if head.startswith(b"{") and b'"cells"' in data:
        return "notebook"
    if suffix in (".docx", ".pdf"):
        raise _other(file, f"no {suffix[1:]}, whatever its name says")
    if b"\0\0\0" in data[:4096]:
        raise _other(file, "no text")
    return "markdown"


def _of_archive(data: bytes, file: Path) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _other(file, "an archive that is broken") from error
    if "word/document.xml" in names:
        return "docx"
    raise _other(file, _OTHER_FORMATS.get(file.suffix.lower(), "an archive"))


def _is_picture(data: bytes) -> bool:
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")) or data[8:12] == b"WEBP"


def _other(file: Path, what: str) -> UsageError:
    return UsageError(
        f"{shown(file.name)} is {what}",
        why="lab3 reads Markdown, notebooks, HTML, docx, PDF and plain text",
        todo="export it to one of these, with its pictures, and hand that in",
    )


# ----------------------------------------------------------------------------------------------- of a folder's files


def _is_none(file: Path) -> bool:
    stem = file.stem.lower()
    return file.name.startswith("~$") or any(stem.startswith(word) for word in _NO_REPORTS)


def _readable(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in _FORMATS]


def _looked_at(file: Path) -> _Candidate | None:
    form = _FORMATS[file.suffix.lower()]
    if form in ("docx", "pdf"):
        return _Candidate(file=file, format=form, words=0, pictures=False, characters=0, unread=True)
    try:
        text = decoded(read_bytes(file)[:_LOOKED_AT_BYTES]).text.lower()
    except UsageError:
        return None
    words = sum(word in text for word in _OF_THE_LAB)
    pictures = any(mark in text for mark in ("](", "![[", "<img", "image/png", "image/jpeg"))
    return _Candidate(file=file, format=form, words=words, pictures=pictures, characters=len(text.strip()))


def _rank(each: _Candidate, root: Path) -> tuple[object, ...]:
    """The likeliest first: what speaks of the lab, then what is named so, then what is long and lies high."""
    stem = each.file.stem.lower()
    speaks = each.words >= 3 or each.unread
    named = any(word in stem for word in _NAMES)
    substance = 0 if speaks and (each.pictures or each.unread) else 1 if speaks else 2 if each.words else 3
    formats = ("markdown", "notebook", "docx", "html", "pdf", "text")
    beside_model = (each.file.parent / "config.json").is_file()
    depth = len(each.file.relative_to(root).parts)
    copied = any(mark in stem for mark in _COPIES)
    return (
        beside_model,
        substance,
        copied,
        not named,
        formats.index(each.format),
        depth,
        -each.characters,
        str(each.file),
    )


def _goes_on(other: _Candidate, first: _Candidate) -> bool:
    """Whether it may hold what the report lacks; the same report in another format does not."""
    twin = other.file.stem.lower() == first.file.stem.lower() and other.format != first.format
    return not twin and (other.words >= 3 or (other.unread and first.words < 3))


def _parts(first: _Candidate, rest: Sequence[_Candidate]) -> tuple[Path, ...]:
    """The files whose names differ from the report's in one number alone: task1.md, task2.md."""
    pattern = _without_number(first.file.stem)
    if pattern is None or not any(word in pattern for word in _PARTS):
        return ()
    found = [
        each.file
        for each in rest
        if each.file.parent == first.file.parent
        and each.format == first.format
        and each.file.stem != first.file.stem
        and _without_number(each.file.stem) == pattern
        and (each.words or each.unread)
    ]
    return tuple(sorted(found, key=lambda file: file.name))[:9]


def _without_number(stem: str) -> str | None:
    """The name with its only number replaced, None if it has none or several."""
    marks = "".join("#" if each.isdigit() or each in _NUMERALS else each for each in stem)
    while "##" in marks:
        marks = marks.replace("##", "#")
    return marks.lower() if marks.count("#") == 1 and "(" not in marks else None


def _no_report(path: Path, files: Sequence[Path]) -> UsageError:
    for file in files:
        if what := _OTHER_FORMATS.get(file.suffix.lower()):
            return _other(file, what)
    why = f"it holds {len(files)} files, none of them a text" if files else "it is empty"
    return UsageError(
        f"no report in {shown(str(path))}", why=why, todo="pass a folder with a .md, .ipynb, .html, .docx, .pdf or .txt"
    )
