"""What is wrong with something that a student wrote, with the place quoted so that it can be shown anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# broken: does not work as it is written; old: an older LMDeploy took it, today's does not; refused: lab3 leaves it out;
# unusable: lab3 does not start such a server; note: worth knowing.
Severity = Literal["broken", "old", "refused", "unusable", "note"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`kind` names it in a word for programs; `text` is quoted from `source`, printable and short."""

    kind: str
    severity: Severity
    what: str
    source: str = ""
    line: int = 0  # 0: nowhere in particular
    text: str = ""
    instead: str = ""  # what to write

    def __str__(self) -> str:
        place = (
            f"{self.source}, line {self.line}: "
            if self.source and self.line
            else f"{self.source}: " * bool(self.source)
        )
        quoted = f": {self.text}" if self.text else ""
        return f"{place}{self.what}{quoted}" + (f" (write {self.instead})" if self.instead else "")


def shown(text: str, limit: int = 160) -> str:
    """`text` on one line, without anything that a terminal or a page would obey, cut at `limit`."""
    cut = text[:limit]
    safe = "".join(each if each.isprintable() else _escaped(each) for each in cut)
    return f"{safe}…" if len(text) > limit else safe


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii", "replace")
