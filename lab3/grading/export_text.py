"""Text of strangers made fit for any page, table or XML, and files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 20_000  # of one text that is shown
# What a reader obeys or cannot see. Spaces of any width stay: Chinese text has its own.
_NEVER = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def visible(value: Any, limit: int = MOST_CHARACTERS) -> str:
    """Text with its lines and tabs, and everything else spelled out that a terminal, a page or XML would obey."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    cut = text[:limit].replace("\r\n", "\n")
    if not (cut.isascii() and cut.isprintable()):
        cut = "".join(each if each in "\n\t" or _is_plain(each) else _spelled(each) for each in cut)
    return f"{cut}… ({len(text) - limit} more characters)" if len(text) > limit else cut


def one_line(value: Any, limit: int = 2000) -> str:
    """The same on one line."""
    return " ".join(visible(value, limit).split())


def cell(value: Any) -> Any:
    """A value for CSV, which no spreadsheet takes for a formula; numbers stay numbers."""
    if value is None or isinstance(value, int | float):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_text(text: str, path: Path) -> None:
    """Write `text`, which is `visible`, beside `path` and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _is_plain(character: str) -> bool:
    # U+FFFE and U+FFFF of any plane, which XML forbids, are Cn.
    return unicodedata.category(character) not in _NEVER


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
