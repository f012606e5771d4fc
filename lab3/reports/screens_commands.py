"""Commands at prompts. OCR's view of a prompt is put right, and lines that the terminal's edge cut are joined; then the
same code reads them that reads commands in a report's text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lab3.reports.commands import commands_of_text
from lab3.reports.commands_lines import prompt_of, runs
from lab3.reports.commands_windows import as_on_linux
from lab3.reports.lines import Sheet
from lab3.reports.model import CommandSeen

_JUNK = re.compile(r"^[\s●•○◦。·∘⊙◯☉□■�ＯoO0@\-.,°©]{1,6}(?=\(|[a-z][\w\-]*@|[~/$➜])")
_MARK_CUT = re.compile(r"^[\s>VvSs7›»》〉)\]?]{1,3}\s{2,}(?=\S)|^>\s?(?=\S)")
_ARROW = re.compile(r"^[→➔➝➙➤⇒](?=\s)")  # OCR's idea of oh-my-zsh's ➜
_GLUED_PROMPT = re.compile(r"(?<=[\w~/\]])([#$])(?=[a-z./])")
_MARKED = re.compile(r"^>\s")  # how a shell marks a line that goes on
_LOST_BACKSLASH = re.compile(r"\s[1lI|/、丶]$")
_HOST = re.compile(r"([\w.\-]+)\s?@\s?([\w.\-]+)\s?[:：]\s?(?=[~/])")
_FLAG_SPACE = re.compile(r"(?<=\s)(-{1,2})\s(?=[a-z])")
_FLAG_VALUE = re.compile(
    r"(?<=\s)(--(?:quant-policy|tp|w-bits|w-group-size|batch-size|server-port|server-name|calib-samples|calib-seqlen"
    r"|cache-max-entry-count|session-len|api-keys))(?=\d)"
)
_ENDS = ("\\", "＼")


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: CommandSeen


def find_commands(sheet: Sheet) -> Iterator[Found]:
    """Every command that stands at a prompt; where there is no prompt at all, every line that is nothing but one."""
    rows = _rows(sheet)
    text = "\n".join(row for row, _, _ in rows)
    for seen in commands_of_text(text, block=sheet.block, line=1):
        at = (seen.place.line or 1) - 1
        last_row = min(len(rows) - 1, at + seen.place.quote.count("\n"))
        first, last = rows[at][1], rows[last_row][2]
        yield Found(first, last, replace(seen, place=sheet.place(first, last)))


def _rows(sheet: Sheet) -> list[tuple[str, int, int]]:
    """The lines as a shell's reader wants them, each with the lines of the sheet that it is made of."""
    cleaned = [prompted(line.text) for line in sheet.lines] if sheet.picture else [line.text for line in sheet.lines]
    cleaned = as_on_linux(cleaned)
    widest = max((len(line.text) for line in sheet.lines), default=0)
    rows: list[tuple[str, int, int]] = []
    number = 0
    goes_on = False
    while number < len(cleaned):
        text, first = cleaned[number], number
        if goes_on and sheet.picture and prompt_of(text) is None:
            text = _MARK_CUT.sub("", text).strip()
            text = f"> {text}" if text else text
        if sheet.picture and number + 1 < len(cleaned) and _MARKED.match(cleaned[number + 1]):
            text = _LOST_BACKSLASH.sub(r" \\", text)
        while _cut_at_edge(sheet, cleaned, number, text, widest):
            number += 1
            text += cleaned[number]
        goes_on = text.rstrip().endswith(_ENDS) and (goes_on or prompt_of(text) is not None or runs(text.strip()))
        rows.append((text, first, number))
        number += 1
    return rows


def prompted(text: str) -> str:
    """A line with what OCR makes of the marks before a prompt taken away, and with the prompt's spaces."""
    plain = _ARROW.sub("➜", _JUNK.sub("", text))
    if _HOST.search(plain[:120]):
        plain = _HOST.sub(r"\1@\2:", plain, count=1)
        head, rest = plain[:160], plain[160:]
        plain = _GLUED_PROMPT.sub(r"\1 ", head, count=1) + rest
    plain = _FLAG_VALUE.sub(r"\1 ", plain)
    return _FLAG_SPACE.sub(r"\1", plain)


def _cut_at_edge(sheet: Sheet, cleaned: list[str], number: int, text: str, widest: int) -> bool:
    """Whether a command goes on in the next line because the terminal's edge cut it there."""
    if number + 1 >= len(cleaned) or text.rstrip().endswith(_ENDS) or len(sheet.lines[number].text) < 40:
        return False
    prompt = prompt_of(text)
    if prompt is None or not runs(text[prompt.end :]):
        return False
    following = cleaned[number + 1]
    full = len(sheet.lines[number].text) >= widest - 1
    new = prompt_of(following) is not None or following[:2].isspace() or re.match(r"[A-Z\[\d]", following)
    return full and bool(following.strip()) and not new
