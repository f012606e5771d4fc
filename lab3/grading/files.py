"""A submitted folder's files, listed and read without being led astray: no links, no devices, no end."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from lab3.errors import UsageError
from lab3.grading.problems import Problem, shown

MOST_ENTRIES = 20_000
DEEPEST = 16
TEXT_BYTES = 1 << 20
PICTURED_BYTES = 16 << 20  # of a notebook or a report with its pictures in it

_NOT_HANDED_IN = frozenset({"__MACOSX", "__pycache__", "node_modules", "site-packages", "conda-meta", "venv"})


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Regular files, the folder's own before those of its folders, each in the order of their names."""

    files: tuple[Path, ...]
    problems: tuple[Problem, ...]


def list_files(folder: Path) -> Listing:
    """What a student means to hand in: without environments, caches, hidden files and what macOS adds to archives.

    At most MOST_ENTRIES entries are looked at. Raises UsageError if `folder` is none.
    """
    files: list[Path] = []
    told: list[Problem] = []
    links = entries = 0
    waiting = deque([(folder, 0)])
    while waiting:
        here, depth = waiting.popleft()
        try:
            with os.scandir(here) as found:
                some = sorted((entry for _, entry in zip(range(MOST_ENTRIES), found, strict=False)), key=_name)
        except OSError as error:
            if here == folder:
                raise UsageError(f"{folder} cannot be read: {error.strerror}", todo="pass a folder") from error
            told.append(_note("unreadable", f"a folder that cannot be read ({error.strerror})", here, folder))
            continue
        if depth and any(entry.name == "pyvenv.cfg" for entry in some):
            continue
        for entry in some:
            entries += 1
            if entries > MOST_ENTRIES:
                what = f"more than {MOST_ENTRIES} files and folders: the rest was not looked at"
                told.append(Problem(kind="too_many_files", severity="note", what=what))
                waiting.clear()
                break
            if entry.name.startswith(".") or entry.name in _NOT_HANDED_IN:
                continue
            links += entry.is_symlink()
            if entry.is_dir(follow_symlinks=False):
                if depth < DEEPEST:
                    waiting.append((here / entry.name, depth + 1))
                else:
                    told.append(_note("too_deep", "folders in folders without end", here, folder))
            elif entry.is_file(follow_symlinks=False):
                files.append(here / entry.name)
    if links:
        told.append(Problem(kind="links", severity="note", what=f"{links} links, which are not followed"))
    return Listing(files=tuple(files), problems=tuple(told))


def read_text(path: Path, *, most_bytes: int = TEXT_BYTES) -> str:
    """The file's text, whatever its bytes; raises UsageError for what is no regular file, too long or unreadable.

    Line ends are kept. UTF-16 with a mark, as Windows' editors write it, is text, too.
    """
    try:
        # Between listing and reading the file may have become something else.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{shown(path.name)} is no regular file", todo="hand in the file itself")
            data = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(path.name)} cannot be read: {error}", todo="hand in a readable file") from error
    if len(data) > most_bytes:
        raise UsageError(
            f"{shown(path.name)} has more than {most_bytes >> 10} KiB",
            todo="hand in what was written, not what it made",
        )
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return data.decode(encoding, "replace")


def relative(path: Path, folder: Path) -> str:
    """The path below `folder` as text that can be shown and stored; a path elsewhere as it is."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return shown(str(inside), limit=1000)


def _name(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def _note(kind: str, what: str, path: Path, folder: Path) -> Problem:
    return Problem(kind=kind, severity="note", what=what, text=relative(path, folder))
