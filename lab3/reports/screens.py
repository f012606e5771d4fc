"""What a screenshot, or a terminal pasted as text, shows: figures, commands, logs, answers, conversations and code.

Each kind has its own finder; here they are asked in turn, and what one has taken for its own no later one sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lab3.reports.commands_lines import prompt_of
from lab3.reports.lines import Line, Sheet, sheet_of_picture, sheet_of_text
from lab3.reports.model import CommandSeen, Printed, Reading, Recognised
from lab3.reports.reading_blocks import is_python
from lab3.reports.screens_chats import find_chats
from lab3.reports.screens_code import find_code
from lab3.reports.screens_commands import find_commands, prompted
from lab3.reports.screens_completions import find_completions
from lab3.reports.screens_logs import find_logs
from lab3.reports.screens_memory import find_memory
from lab3.reports.screens_sizes import find_sizes
from lab3.reports.screens_traces import find_traces

_BARE = re.compile(r"^\s*-?\d{1,12}(?:\.\d+)?\s*$")
_CURSOR = re.compile(r"\s{2,}[_一□|]$")  # the upper edge of the one in the next row
_MOST_PRINTED = 300
_LEGIBLE = 0.5
_EMPTY = Line(text="", written="")

Numbered = tuple[int, Reading]


def read_screen(seen: Recognised, *, block: int) -> tuple[Reading, ...]:
    """What the picture of block `block` shows, from its top down."""
    return _read(sheet_of_picture(seen, block=block))


def read_text(text: str, *, block: int, line: int | None) -> tuple[Reading, ...]:
    """The same from text; `line` is the number of its first line in the report."""
    return _read(sheet_of_text(text, block=block, line=line))


def _read(sheet: Sheet) -> tuple[Reading, ...]:
    found = list(_found(sheet))
    found.sort(key=lambda each: each[0])
    return tuple(reading for _, reading in found)


def _found(sheet: Sheet) -> Iterator[Numbered]:
    rest = sheet
    taken: set[int] = set()

    def took(numbers: Iterable[int]) -> None:
        nonlocal rest
        taken.update(numbers)
        kept = tuple(_EMPTY if number in taken else line for number, line in enumerate(sheet.lines))
        rest = replace(sheet, lines=kept)

    completions = list(find_completions(sheet))
    for completion in completions:
        yield completion.first, completion.reading
    took(number for each in completions for number in range(each.first, each.last + 1))
    code = [] if completions else list(find_code(rest))
    for each in code:
        yield each.first, each.reading
    took(number for each in code for number in range(each.first, each.last + 1))
    written = not sheet.picture and is_python("\n".join(line.text for line in rest.lines))
    traces = [] if written else list(find_traces(rest))
    for trace in traces:
        yield trace.first, trace.call
        if trace.result is not None:
            yield trace.last, trace.result
    took(number for each in traces for number in range(each.first, each.last + 1))
    memory = list(find_memory(rest))
    for reading in memory:
        yield reading.first, reading.reading
    took(reading.first for reading in memory)
    commands = list(find_commands(rest))
    for command in commands:
        yield command.first, command.reading
    # `du` at a prompt says in which unit its rows are, so sizes are looked for before commands are put aside
    sizes = list(find_sizes(rest))
    for size in sizes:
        yield size.number, size.reading
    logs = list(find_logs(rest))
    typed = {number for each in commands for number in range(each.first, each.last + 1)}
    for log in logs:
        if log.number not in typed:
            yield log.number, log.reading
    if not completions and not code:
        yield from _chats(rest, quiet=not memory and not sizes)
    if code:
        return
    took(typed | {each.number for each in sizes} | {each.number for each in logs})
    yield from _printed(rest, shown=bool(completions) or any(_runs_python(each.reading) for each in commands))


def _chats(sheet: Sheet, *, quiet: bool) -> Iterator[Numbered]:
    for chat in find_chats(sheet):
        if quiet or chat.reading.where == "terminal":
            yield chat.first, chat.reading


def _printed(sheet: Sheet, *, shown: bool) -> Iterator[Numbered]:
    """What is left: bare figures, and beside an answer or a program's start whatever it printed."""
    for number, line in enumerate(sheet.lines[:_MOST_PRINTED]):
        text = _CURSOR.sub("", line.text).strip() if sheet.picture else line.text.strip()
        if not text or line.confidence < _LEGIBLE or (sheet.picture and prompt_of(prompted(line.text))):
            continue
        if shown or _BARE.match(text):
            yield number, Printed(text=text, place=sheet.place(number))


def _runs_python(reading: Reading) -> bool:
    return isinstance(reading, CommandSeen) and reading.argv[0].rsplit("/", 1)[-1].startswith(("python", "curl"))
