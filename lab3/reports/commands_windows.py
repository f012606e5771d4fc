"""Commands of PowerShell and cmd.exe, written as a shell of Linux has them: for one parser to read both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from lab3.reports.commands_lines import prompt_of, runs

_PROMPT = re.compile(r"^\s*(?:\([\w.+\- ]{1,60}\)\s*)*(?:PS\s+)?[A-Za-z]:\\")
_DRIVE = re.compile(r"(?:^|[\s\"'=])(?:[A-Za-z]:|\.{1,2})\\\w")
_INNER = re.compile(r"\\(?=[\w.])")  # of a path; one at a line's end goes on there
_GOES_ON = re.compile(r"\s[`^]\s*$")  # PowerShell's mark, and cmd's
_MISREAD = re.compile(r"\s[`^´、'‘’]\s*$")  # and what OCR takes the first for
_MORE = re.compile(r"^\s*(?:>>|More\?)\s?")  # what they print before a line that goes on


def as_on_linux(lines: Sequence[str]) -> list[str]:
    """The lines with their count kept: paths with slashes, and a backslash where a command goes on."""
    found = []
    going = False
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        prompt = prompt_of(line)
        start = prompt.end if prompt else 0
        body = line[start:]
        if going and prompt is None:
            body = _MORE.sub("  ", body)
        begins = bool(prompt and _PROMPT.match(line)) or (
            runs(body) and bool(_GOES_ON.search(body) or _DRIVE.search(body))
        )
        if begins or (going and prompt is None):
            body = _INNER.sub("/", body)
            more = bool(_MORE.match(following))
            going = more or bool(_GOES_ON.search(body))
            body = f"{(_MISREAD if more else _GOES_ON).sub('', body)} \\" if going else body
        else:
            going = False
        found.append(line[:start] + body)
    return found
