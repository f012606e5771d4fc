"""Sizes of folders and files in `du`, `ls -lh` and file managers, each with what its rounding allows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from lab3.reports.lines import Line, Sheet
from lab3.reports.model import FolderSize

_NAME = r"(?P<name>(?:[~./\w\u3400-\u9fff][\w.\-~+/:@\u3400-\u9fff\ufffd]*))"
_ROUNDED = re.compile(
    rf"^[\s●•○。·◦]{{0,8}}(?P<figure>\d{{1,4}}(?:[.,]\d)?)\s?(?P<unit>[KMGT])(?:i?B)?\s+{_NAME}/?\s*$"
)
_WHOLE = re.compile(rf"^[\s●•○。·◦]{{0,8}}(?P<figure>\d{{1,15}})\s+{_NAME}/?\s*$")
_LISTED = re.compile(
    r"^\s*[-l][rwxsStT\-]{9}[.+@]?\s+\d+\s+\S+\s+\S+\s+(?P<figure>\d+(?:[.,]\d)?)(?P<unit>[KMGT]?)B?"
    r"\s+\S+\s+\S+\s+\S+\s+(?P<name>\S+)"
)
_EXACT = re.compile(r"(?P<figure>\d{1,3}(?:[,，]\d{3})+)\s*(?:字节|bytes|Bytes|個位元組)")
_MANAGER = re.compile(
    r"^\s*(?P<name>[\w.\-]*(?:internlm|qwen|llama|chat|model|safetensors|\.bin|4bit|awq|w4a16)[\w.\-]*)\s.*?"
    r"(?<![\d.\ufffd])(?P<figure>\d{1,4}(?:\.\d{1,2})?)\s?(?P<unit>[KMGT])i?B\s*$",
    re.IGNORECASE,
)
_DU = re.compile(r"(?:^|[\s#$%>;&|])du(?P<flags>(?:\s+(?!\|)\S+)*)")
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Found:
    """A reading, and its line."""

    number: int
    reading: FolderSize


def find_sizes(sheet: Sheet) -> Iterator[Found]:
    """Each row that tells the size of a folder or of a file."""
    flags: str | None = None
    folder = ""
    for number, line in enumerate(sheet.lines):
        if (command := _DU.search(line.text)) and _is_command(line.text, command):
            flags = command["flags"]
            folder = _prompt_folder(line.text)
            continue
        if found := _size(sheet, number, flags, folder):
            yield Found(number, found)


def _size(sheet: Sheet, number: int, flags: str | None, folder: str) -> FolderSize | None:
    text = sheet.lines[number].text
    if row := _ROUNDED.match(text):
        decimal = flags is not None and "--si" in flags
        low, high = rounded_up(row["figure"], row["unit"], base=1000 if decimal else 1024)
        return _made(sheet, number, _named(row["name"], folder), f"{row['figure']}{row['unit']}", low, high)
    if row := _LISTED.match(text):
        if row["unit"]:
            low, high = rounded_up(row["figure"], row["unit"])
        else:
            low = high = int(row["figure"].partition(".")[0])
        return _made(sheet, number, row["name"], row["figure"] + row["unit"], low, high)
    if exact := _EXACT.search(text):
        size = int(re.sub(r"\D", "", exact["figure"]))
        return _made(sheet, number, _name_above(sheet.lines, number), exact["figure"], size, size)
    if row := _MANAGER.match(text):
        low, high = _nearest(row["figure"], row["unit"].upper())
        return _made(sheet, number, row["name"], f"{row['figure']}{row['unit']}", low, high)
    if (row := _WHOLE.match(text)) and flags is not None and not (text[:1] == " " and number == 0):
        return _whole(sheet, number, row, flags, folder)
    return None


def _whole(sheet: Sheet, number: int, row: re.Match[str], flags: str, folder: str) -> FolderSize | None:
    """A row without a unit: zero, bytes of `du -b`, or blocks, as the command says."""
    figure = int(row["figure"])
    short = "".join(word[1:] for word in flags.split() if re.fullmatch(r"-[a-zA-Z]+", word))
    unit = 1 if "b" in short or "--bytes" in flags else 1 << 20 if "m" in short else 1024
    if figure and "h" in short and unit != 1:
        return None
    high = figure * unit
    low = high if unit == 1 or not figure else high - unit + 1
    return _made(sheet, number, _named(row["name"], folder), row["figure"], low, high)


def rounded_up(figure: str, unit: str, *, base: int = 1024) -> tuple[int, int]:
    """Bytes that `1.5G` of `du -h` and `ls -h` can be: they round up, so more than 1.4 GiB, and at most 1.5 GiB.

    Source: human_readable in gnulib's lib/human.c, with human_ceiling, as coreutils' du and ls call it.
    """
    shown = Decimal(figure.replace(",", "."))
    step = Decimal("0.1") if "." in figure or "," in figure else Decimal(1)
    size = Decimal(base) ** _POWER[unit]
    high = math.floor(shown * size)
    low = math.floor((shown - step) * size) + 1 if shown else 0
    return max(0, low), high


def _nearest(figure: str, unit: str) -> tuple[int, int]:
    """What a file manager's figure can be: rounded either way, in powers of 1000 or of 1024."""
    shown = Decimal(figure)
    digits = -int(shown.as_tuple().exponent)
    step = Decimal(1).scaleb(-digits)
    low = (shown - step) * Decimal(1000) ** _POWER[unit]
    high = (shown + step) * Decimal(1024) ** _POWER[unit]
    return max(0, math.floor(low)), math.ceil(high)


def _made(sheet: Sheet, number: int, name: str, text: str, low: int, high: int) -> FolderSize:
    place = sheet.place(number)
    doubt = ""
    if "\ufffd" in sheet.lines[number].text.split()[0] or place.confidence < 0.6:
        doubt = "the row is hard to read"
    return FolderSize(name=name, text=text, low=low, high=high, place=place, doubt=doubt)


def _named(path: str, folder: str) -> str:
    """The last part of a path; `.` is the folder that the prompt names."""
    plain = path.rstrip("/")
    if plain in (".", "", "./"):
        plain = folder.rstrip("/") or path
    return plain.rsplit("/", 1)[-1] or path


def _is_command(text: str, command: re.Match[str]) -> bool:
    before = text[: command.start()].rstrip()
    return not before or before.endswith(tuple("#$%>❯;&|")) or text[command.start()] in "#$%>"


def _prompt_folder(text: str) -> str:
    found = re.search(r":\s?([~/][^\s#$]*)[#$]", text) or re.search(r"([~/][\w./\-]*)\s*[#$]\s", text)
    return found[1] if found else ""


def _name_above(lines: Sequence[Line], number: int) -> str:
    """What a window of properties calls the folder, in one of the lines above; empty if it is not seen."""
    for line in reversed(lines[max(0, number - 10) : number]):
        found = re.search(r"[\w.\-]*(?:internlm|chat|4bit|awq|w4a16)[\w.\-]*", line.text)
        if found:
            return found[0]
    return ""
