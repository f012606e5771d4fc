"""Memory of cards, as studio bars, nvidia-smi, studio-smi, nvitop, gpustat and queries show it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lab3.reports.lines import Line, Sheet
from lab3.reports.model import GpuProcess, MemoryReading

_NUMBER = r"(?<![\d.\ufffd])(\d[\dOolI|]{0,6})"
_MIB = r"(?:MiB|MIB|Mib|MB|M)"
# A line of the table that touches the unit is taken for a thin letter: `24576MiBi`.
_PAIR = re.compile(rf"{_NUMBER}\s*{_MIB}?\s*[/／]\s*{_NUMBER}\s*{_MIB}(?=[il1I]?(?:[^\w\ufffd]|$))")
_GIB_PAIR = re.compile(
    r"(?<![\d.\ufffd])(\d{1,3}\.\d+)\s*(?:GiB|GB|G)?\s*[/／]\s*(\d{1,3}(?:\.\d+)?)\s*(?:GiB|GB|G)(?![\w\ufffd])"
)
_TWO_UNITS = re.compile(  # nvitop tells what is large in GiB
    r"(?<![\d.\ufffd])(\d{1,6}(?:\.\d+)?)\s*([MG]iB)\s*[/／]\s*(\d{1,6}(?:\.\d+)?)\s*([MG]iB)(?![\w\ufffd])"
)
_QUERY = re.compile(rf"^\s*(?:\w[\w .\-]*,\s*)?{_NUMBER}\s*MiB,\s*{_NUMBER}\s*MiB\s*(?:,|$)")
_POWER = re.compile(r"\d\s*W\s*/\s*\d|Default|E\.\s*Process|N/A")
_UNITS = {"MiB": 1, "GiB": 1024}
_PERCENT = re.compile(r"^\s*\|?\s*(?<![\d.\ufffd])(\d{1,3}(?:\.\d+)?)\s*%")
_ANY_PERCENT = re.compile(r"(?<![\d.\ufffd])(\d{1,3}(?:\.\d+)?)\s*%")
_BAR_CARD = re.compile(
    r"GPU\s*-?\s*(\d{1,2})\s*[:：]\s*(\d{1,3})\s*%\s*((?:N[vV][iI]?[dD]|[A-Z])[\w\- ]*?)\s+(\d{1,3}(?:\.\d+)?)\s*%"
)
_BAR_CARD_ALONE = re.compile(r"GPU\s*-?\s*(\d{1,2})\s*[:：]\s*(\d{1,3})\s*%\s*(N[vV][iI]?[dD]\w*\s+[\w\-]+)")
_VIDEO = re.compile(r"显\s*存|[显昱]\s?[存仔]|VRAM|GPU\s*(?:Memory|内存)", re.IGNORECASE)
_CARD = re.compile(
    r"^[\s|\[│┃1lI!]{0,6}(\d{1,2})\]?[\s,:|]+"
    r"((?:NVIDIA|Nvidia|Tesla|GeForce|Quadro|RTX|GRID|A100|A10|A800|H100|H800|H20|V100|L20|L40|T4)[^|│]*)"
)
_CARD_END = re.compile(
    r"\s{2,}|\s+(?:On|Off|0n|0ff|OFF|ON|N/A|WDDM|TCC|\.\.\.)(?:\s|$)|\.\.\.|\s[|│]|\s[0-9A-Fa-f]{8}:"
)
_MIG_ROW = re.compile(r"^[\s|│1lI●•]{0,8}(\d{1,2})\s+(\d{1,2})\s+(\d{1,2})\s+(\d{1,2})\b")
_SHARE = re.compile(r"(\d{1,3})\s*%\s*/\s*(\d{1,3})\s*%")
_PROCESS = re.compile(
    r"^[\s|│1lI!]{0,6}(\d{1,2})\s+(?:(?:N/A|\d{1,2})\s+(?:N/A|\d{1,2})\s+)?"
    r"(\d{1,8})\s+(C\+G|M\+C|C|G|0|c)\s+(\S.*?)\s+(\d{1,6})\s*(?:MiB|MB)"
)
_DIGITS = str.maketrans("OolI|", "00111")
# fmt: off
_TOTALS = frozenset((  # MiB that drivers tell of whole cards and of the studio's slices
    4096, 6144, 8188, 8192, 10_240, 11_019, 11_264, 12_282, 12_288, 15_109, 15_360, 16_376, 16_384, 20_475, 22_528,
    22_731, 23_028, 24_217, 24_258, 24_259, 24_564, 24_566, 24_576, 32_510, 32_607, 32_760, 32_768, 40_536, 40_960,
    45_632, 46_068, 48_685, 49_140, 49_152, 81_037, 81_079, 81_251, 81_559, 81_920, 97_871, 143_771,
))
# fmt: on
_LOOKALIKE = {
    "0": "8695",
    "1": "74",
    "2": "7",
    "3": "859",
    "4": "91",
    "5": "6389",
    "6": "8504",
    "7": "12",
    "8": "0369",
    "9": "0845",
}
_SURE = 0.9
_OLD_BAR = 80  # rows of a window between a card's name and its memory are at most three


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: MemoryReading


def find_memory(sheet: Sheet) -> Iterator[Found]:
    """Every figure of used and total memory of a card, with what stands beside it."""
    lines = sheet.lines
    processes = tuple(_processes(sheet))
    readings = [found for number in range(len(lines)) for found in _of_line(sheet, number)]
    for found in readings:
        reading = found.reading
        mine = tuple(each for each in processes if len(readings) == 1 or each.gpu == reading.gpu)
        if reading.kind in ("nvidia-smi", "studio"):
            reading = replace(reading, processes=mine)
        yield replace(found, reading=reading)


def _of_line(sheet: Sheet, number: int) -> Iterator[Found]:
    line = sheet.lines[number]
    for pair in _PAIR.finditer(line.text):
        if _is_main_memory(line.text[: pair.start()]) or _is_bar1(sheet.lines, number):
            continue
        yield Found(number, number, _reading(sheet, number, pair))
    if not _PAIR.search(line.text):
        if query := _QUERY.search(line.text):
            yield Found(number, number, _from_query(sheet, number, query))
        elif _VIDEO.search(line.text) or _VIDEO.search(_text_before(sheet.lines, number, 1)):
            for pair in _GIB_PAIR.finditer(line.text):
                if not _is_main_memory(line.text[: pair.start()]):
                    yield Found(number, number, _in_gib(sheet, number, pair))
        elif _POWER.search(line.text) and (two := _TWO_UNITS.search(line.text)):
            yield Found(number, number, _in_two_units(sheet, number, two))


def _reading(sheet: Sheet, number: int, pair: re.Match[str]) -> MemoryReading:
    line = sheet.lines[number]
    used, total = (int(each.translate(_DIGITS)) for each in pair.groups())
    after = line.text[pair.end() :]
    bar = bool(_VIDEO.search(line.text[: pair.start()])) or _bar_card(sheet.lines, number) is not None
    share = _SHARE.search(after)
    if bar:
        percent, quote = _bar_percent(sheet.lines, number, pair)
        card = _bar_card(sheet.lines, number)
        reading = MemoryReading(
            used_mib=used,
            total_mib=total,
            place=sheet.place(number, quote=quote),
            percent=percent,
            gpu=int(card[1]) if card else None,
            card=_name(card[3]) if card else "",
            share_percent=float(card[2]) if card else None,
            kind="studio",
        )
        return _checked(reading)
    gpu, card_name = _card_of(sheet.lines, number)
    kind: Literal["studio", "nvidia-smi", "other"] = "other"
    if share:
        kind = "studio"
    elif (
        re.search(r"Default|Process|Disabled|N/A|\d\s*W\s*/\s*\d|E\.\s*Pro", line.text)
        or "MIG" in card_name
        or (pair[0].count("MiB") == 2 and any("SMI" in each.text for each in sheet.lines[:number]))
    ):
        kind = "nvidia-smi"
    reading = MemoryReading(
        used_mib=used,
        total_mib=total,
        place=sheet.place(number, quote=pair[0]),
        gpu=gpu,
        card=card_name,
        share_percent=float(share[2]) if share else None,
        kind=kind,
    )
    return _checked(reading)


def _from_query(sheet: Sheet, number: int, query: re.Match[str]) -> MemoryReading:
    """`memory.used [MiB], memory.total [MiB]`, or the other way about, as the heading says."""
    first, second = (int(each.translate(_DIGITS)) for each in query.groups())
    heading = next((each.text for each in reversed(sheet.lines[:number]) if "memory.used" in each.text), "")
    at_total, at_used = heading.rfind("memory.total"), heading.rfind("memory.used")
    used, total = (second, first) if 0 <= at_total < at_used else (first, second)
    place = sheet.place(number, quote=query[0].strip())
    return _checked(MemoryReading(used_mib=used, total_mib=total, place=place, kind="nvidia-smi"))


def _in_two_units(sheet: Sheet, number: int, pair: re.Match[str]) -> MemoryReading:
    used, total = (round(float(figure) * _UNITS[unit]) for figure, unit in (pair.group(1, 2), pair.group(3, 4)))
    gpu, card = _card_of(sheet.lines, number)
    place = sheet.place(number, quote=pair[0])
    return _checked(MemoryReading(used_mib=used, total_mib=total, place=place, gpu=gpu, card=card, kind="nvidia-smi"))


def _in_gib(sheet: Sheet, number: int, pair: re.Match[str]) -> MemoryReading:
    used, total = (round(float(each) * 1024) for each in pair.groups())
    place = sheet.place(number, quote=pair[0])
    percent = _PERCENT.match(sheet.lines[number].text[pair.end() :])
    reading = MemoryReading(used_mib=used, total_mib=total, place=place, kind="other")
    if percent and abs(100 * used / max(1, total) - float(percent[1])) > 1.5:
        return reading
    return replace(reading, percent=float(percent[1])) if percent else reading


# ------------------------------------------------------------------------------------------------------- what is beside


def _is_main_memory(before: str) -> bool:
    """Whether the words before a figure say that it is the computer's memory, not a card's."""
    words = re.findall(r"显\s*存|内\s*存|VRAM|RAM|Mem(?:ory)?|Swap|磁盘|Disk|CPU", before)
    return bool(words) and not re.match(r"显|VRAM", words[-1]) and "GPU" not in before[-40:] and words[-1] != "Memory"


def _is_bar1(lines: Sequence[Line], number: int) -> bool:
    """The second row of a MIG slice is its BAR1 memory; the first has the numbers of the slice."""
    text = lines[number].text
    return bool(
        number
        and "MIG" in "".join(each.text for each in lines[:number])
        and _MIG_ROW.match(lines[number - 1].text)
        and not _MIG_ROW.match(text)
        and not re.search(r"\d\s*W\s*/|Default", text)
    )


def _text_before(lines: Sequence[Line], number: int, count: int) -> str:
    return "\n".join(each.text for each in lines[max(0, number - count) : number + 1])


def _bar_card(lines: Sequence[Line], number: int) -> re.Match[str] | None:
    """`GPU-1: 30% Nvidia A100 0%` in the same bar: in this row or one of the two before or after."""
    for near in (number, number - 1, number + 1, number - 2):
        if 0 <= near < len(lines) and (
            card := _BAR_CARD.search(lines[near].text) or _BAR_CARD_ALONE.search(lines[near].text)
        ):
            return card
    return None


def _bar_percent(lines: Sequence[Line], number: int, pair: re.Match[str]) -> tuple[float | None, str]:
    """The share of memory that stands right of the figures, or alone below them; and the text of both."""
    text = lines[number].text
    if percent := _PERCENT.match(text[pair.end() :]):
        return float(percent[1]), text[pair.start() : pair.end() + percent.end()]
    below = lines[number + 1].text.strip() if number + 1 < len(lines) else ""
    if percent := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", below):
        return float(percent[1]), pair[0]
    return None, pair[0]


def _card_of(lines: Sequence[Line], number: int) -> tuple[int | None, str]:
    """Index and name of the card whose row this is: its own words, or the row above."""
    text = lines[number].text
    if (mig := _MIG_ROW.match(text)) and any("MIG" in each.text for each in lines[:number]):
        return int(mig[1]), "MIG"
    for near in range(number, max(-1, number - 4), -1):
        if found := _CARD.match(lines[near].text):
            if near < number and any(_PAIR.search(each.text) for each in lines[near:number]):
                return None, ""
            return int(found[1]), _name(_CARD_END.split(found[2])[0])
    return None, ""


def _name(text: str) -> str:
    return " ".join(text.split()).strip(" .|")


def _processes(sheet: Sheet) -> Iterator[GpuProcess]:
    begun = False
    for number, line in enumerate(sheet.lines):
        begun = begun or "Processes" in line.text or "PID" in line.text
        if begun and (found := _PROCESS.match(line.text)):
            yield GpuProcess(
                pid=int(found[2]),
                name=found[4].strip(),
                used_mib=int(found[5]),
                gpu=int(found[1]),
                place=sheet.place(number),
            )


# ------------------------------------------------------------------------------------------------------------- checking


def _checked(reading: MemoryReading) -> MemoryReading:
    """The reading, put right if OCR was not sure and just one slip explains what does not fit; else with its doubt."""
    total = reading.total_mib or 0
    if not total or reading.used_mib > total:
        fixed = _corrected(reading) if reading.percent is not None else []
        if len(fixed) == 1:
            return fixed[0]
        return replace(reading, doubt=f"{reading.used_mib} of {total} MiB cannot be used")
    if reading.percent is None:
        return _unclear(reading)
    if _fits(reading.used_mib, total, reading.percent, reading.place.quote):
        return reading
    fixed = _corrected(reading)
    if len(fixed) == 1 and reading.place.confidence < _SURE:
        return fixed[0]
    share = 100 * reading.used_mib / total
    return replace(
        reading,
        doubt=f"{reading.used_mib} / {total} MiB are {share:.2f}%, and {reading.percent:g}% stands beside it",
    )


def _unclear(reading: MemoryReading) -> MemoryReading:
    if reading.place.confidence < 0.6:
        return replace(reading, doubt="the figure is hard to read, and nothing beside it confirms it")
    return reading


def _fits(used: int, total: int, percent: float, quote: str) -> bool:
    """Whether a percentage is that of the figures, rounded or cut to the digits that it is shown with."""
    shown = _ANY_PERCENT.findall(quote)
    digits = len(shown[-1].partition(".")[2]) if shown else 2
    return (
        abs(100 * used / total - percent) <= 1.01 * 10 ** -max(digits, 0)
        if digits
        else abs(100 * used / total - percent) <= 1.0
    )


def _corrected(reading: MemoryReading) -> list[MemoryReading]:
    """Every reading that differs in one letter that OCR confuses, and fits."""
    used, total, percent = str(reading.used_mib), str(reading.total_mib), f"{reading.percent:g}"
    quote = reading.place.quote
    found = []
    for number, text in enumerate((used, total, percent)):
        if number == 1 and int(text) in _TOTALS:
            continue
        for other in _slips(text):
            given = [used, total, percent]
            given[number] = other
            if (
                int(given[1])
                and int(given[0]) <= int(given[1])
                and _fits(int(given[0]), int(given[1]), float(given[2]), quote)
            ):
                found.append(replace(reading, used_mib=int(given[0]), total_mib=int(given[1]), percent=float(given[2])))
    return found


def _slips(text: str) -> Iterator[str]:
    for at, letter in enumerate(text):
        for other in _LOOKALIKE.get(letter, ""):
            yield text[:at] + other + text[at + 1 :]
