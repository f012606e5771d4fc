"""Function calls as a program tells them in its own words: `add({"a": 3, "b": 5}) → 8`, or name, arguments and result
in a line each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab3.reports.lines import Sheet
from lab3.reports.model import CompletionSeen, Printed, ToolCallSeen

_MOST_LINES = 4  # over which one call is told
_ARGUMENTS = r"(?P<arguments>\{[^{}\n]{1,300}\})"
_NUMBER = r"(?P<result>-?\d+(?:\.\d+)?)"
_CALL = re.compile(
    r"^\s*(?:(?:tool )?call(?:ed|ing)?\s*[:：]?\s*)?(?P<name>[A-Za-z_]\w*)\(" + _ARGUMENTS + r"\)"
    r"\s*(?:→|->|=>|＝|=|[:：])\s*" + _NUMBER + r"\s*$",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?:(?:函数|工具)(?:名称?)?|调用|\b(?:function|tool)(?:[ _]name)?\b|\bcall(?:s|ed|ing)?\b|\bname\b)"
    r"[\s:=“”\"'`是为了]{0,8}(?P<name>(?!name\b|tool\b|function\b|calls?\b|with\b|the\b)[A-Za-z_]\w*)\b[^{}]{0,60}?"
    + _ARGUMENTS,
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"^[^{}\d]{0,40}?(?:结果|返回值?|输出|\bresults?|\boutputs?|\breturn(?:s|ed)?(?: value)?|→|->|=>)"
    r"[\s:：=“”\"'`是为]{0,8}" + _NUMBER + r"(?![\w.,])",
    re.IGNORECASE,
)


_NARROW = str.maketrans("：，｛｝（）“”＂", ':,{}()"""')
_QUOTED = re.compile(r'"\s*(\w+)\s*"(?=\s*:)')


@dataclass(frozen=True)
class Trace:
    """A call with the lines that tell it; `result` None where they do not."""

    first: int
    last: int
    call: CompletionSeen
    result: Printed | None


def find_traces(sheet: Sheet) -> Iterator[Trace]:
    """Each call whose arguments are JSON and numbers, in its order."""
    number = 0
    while number < len(sheet.lines):
        found = _at(sheet, number)
        if found is not None:
            yield found
        number = found.last + 1 if found else number + 1


def _at(sheet: Sheet, number: int) -> Trace | None:
    if whole := _CALL.match(_plain(sheet.lines[number].text)):
        return _trace(sheet, number, number, whole, whole["result"], number) if _numbers(whole["arguments"]) else None
    lines = [_plain(line.text) for line in sheet.lines[number : number + _MOST_LINES]]
    named = _NAMED.search("\n".join(lines))
    if named is None or named.start() > len(lines[0]) or not _numbers(named["arguments"]):
        return None
    told = "\n".join(lines)[: named.end()].count("\n")
    rest = "\n".join(lines)[named.end() :]
    result = _RESULT.match(rest)
    last = number + told + (rest[: result.end()].count("\n") if result else 0)
    return _trace(sheet, number, last, named, result["result"] if result else None, last)


def _trace(sheet: Sheet, first: int, last: int, found: re.Match[str], result: str | None, at: int) -> Trace:
    call = ToolCallSeen(name=found["name"], arguments=found["arguments"])
    printed = None if result is None else Printed(text=result, place=sheet.place(at))
    return Trace(first, last, CompletionSeen(place=sheet.place(first, last), tool_calls=(call,)), printed)


def _plain(text: str) -> str:
    """A line with signs of full width as JSON has them: OCR sees such beside Chinese, and spaces within quotes."""
    return _QUOTED.sub(r'"\1"', text.translate(_NARROW))


def _numbers(arguments: str) -> bool:
    """Whether they are a JSON object of numbers: a schema of a tool is none."""
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and len(read) > 0 and all(_is_number(each) for each in read.values())


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and bool(re.fullmatch(r"-?\d+(?:\.\d+)?", value)))
