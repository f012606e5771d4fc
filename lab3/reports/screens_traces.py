"""Function calls as a program tells them in one line each: `add({"a": 3, "b": 5}) → 8`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lab3.reports.lines import Sheet
from lab3.reports.model import CompletionSeen, Printed, ToolCallSeen
from lab3.reports.screens_repr import is_json

_CALL = re.compile(
    r"^\s*(?:(?:tool )?call(?:ed|ing)?\s*[:：]?\s*)?(?P<name>[A-Za-z_]\w*)\((?P<arguments>\{[^{}]*\})\)"
    r"\s*(?:→|->|=>|＝|=|[:：])\s*(?P<result>-?\d+(?:\.\d+)?)\s*$",
    re.IGNORECASE,
)


def find_traces(sheet: Sheet) -> Iterator[tuple[int, CompletionSeen, Printed]]:
    """Each line that tells a call, its arguments as JSON and its result; with the number of the line."""
    for number, line in enumerate(sheet.lines):
        found = _CALL.match(line.text)
        if found is None or not is_json(found["arguments"]):
            continue
        place = sheet.place(number)
        call = ToolCallSeen(name=found["name"], arguments=found["arguments"])
        yield number, CompletionSeen(place=place, tool_calls=(call,)), Printed(text=found["result"], place=place)
