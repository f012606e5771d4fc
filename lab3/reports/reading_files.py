"""A report's bytes, and the text that they are: its encoding is found, and what cannot be kept is said."""

from __future__ import annotations

import codecs
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lab3.errors import UsageError
from lab3.grading.problems import shown

MOST_BYTES = 64 << 20  # of a report with its pictures in it
_MARKS = (  # UTF-32 first: its mark begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MISREAD_SHARE = 0.05  # of characters that are no ASCII: more of them broken, and it is no UTF-8


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a file says, with line ends as `\\n`, without NULs and halves of characters."""

    text: str
    encoding: str
    problems: tuple[str, ...] = ()


def read_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Raises UsageError for what is no regular file, too long or cannot be read. Links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UsageError(f"{shown(path.name)} is no regular file", todo="hand in the file itself")
            data = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shown(path.name)} cannot be read", why=why, todo="hand in a readable file") from error
    if len(data) > most_bytes:
        raise UsageError(
            f"{shown(path.name)} has more than {most_bytes >> 20} MiB",
            why="nobody writes that much: pictures of a report are files beside it",
            todo="hand in a smaller report",
        )
    return data


def decoded(data: bytes) -> Text:
    """The text of `data`: by its mark, else UTF-8, UTF-16 without a mark, or GB18030, which GBK is part of."""
    text, encoding, problem = _decoded(data)
    problems = [problem] if problem else []
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        problems.append(f"{text.count(chr(0))} NUL characters were left out")
        text = text.replace("\0", "")
    whole = without_halves(text)
    if whole != text:
        problems.append("characters of which only half is there were replaced")
    return Text(text=whole, encoding=encoding, problems=tuple(problems))


def without_halves(text: str) -> str:
    """Surrogates are paired where they can be; a lone one, which nothing can store, becomes the sign of replacement."""
    if not any("\ud800" <= each <= "\udfff" for each in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decoded(data: bytes) -> tuple[str, str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _marked(data, encoding)
    for encoding in (*_wide(data), "utf-8"):
        try:
            return data.decode(encoding), encoding, ""
        except UnicodeDecodeError:
            pass
    lenient = data.decode("utf-8", "replace")
    broken = lenient.count("\ufffd")
    if broken <= _MISREAD_SHARE * max(1, sum(not each.isascii() for each in lenient)):
        return lenient, "utf-8", f"{broken} places are no UTF-8, and were replaced"
    try:
        return data.decode("gb18030"), "gb18030", ""
    except UnicodeDecodeError:
        text = data.decode("gb18030", "replace")
        told = text.count("\ufffd")
        return text, "gb18030", f"{told} places are neither UTF-8 nor GB18030, and were replaced"


def _marked(data: bytes, encoding: str) -> tuple[str, str, str]:
    try:
        return data.decode(encoding), encoding, ""
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
        return text, encoding, f"{text.count(chr(0xFFFD))} places are no {encoding.upper()}, and were replaced"


def _wide(data: bytes) -> tuple[str, ...]:
    """UTF-16 without its mark: every other byte of spaces, digits and line ends is a NUL."""
    head = data[: 4096 & ~1]
    if len(head) < 8:
        return ()
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd > len(head) // 8 and even * 8 < odd:
        return ("utf-16-le",)
    return ("utf-16-be",) if even > len(head) // 8 and odd * 8 < even else ()
