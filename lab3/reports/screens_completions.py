"""Printed answers of the API: `ChatCompletion(...)` as Python prints it, or JSON, put together again from the lines
that a terminal cut it into."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lab3.reports.commands_lines import prompt_of
from lab3.reports.lines import Sheet, repaired
from lab3.reports.model import CompletionSeen
from lab3.reports.screens_joins import Joined, Lines
from lab3.reports.screens_repr import Fields, closing, is_json, read_json, read_loosely, read_repr

_REPR = re.compile(
    r"\[?Chat\s?Completion(?:Message(?:(?:Function)?ToolCall)?|Output\w*)?\s?\("
    r"(?=\s*(?:id|content|choices|role)?\s*=?)"
)
_JSON = re.compile(
    r'\{\s*(?:"id"\s*:|"object"\s*:\s*"chat|"choices"\s*:|"model"\s*:)|"object"\s*:\s*"chat\.completion"'
)
_PIECE = re.compile(
    r"CompletionUsage\s?\(|ChatCompletionMessage|tool_calls\s*=\s*\[|total_tokens\s*=\s*\d|Function\s?\(\s*arguments"
)
_BARE = re.compile(r"^\s*-?\d{1,12}(?:\.\d+)?\s*$")
_END = re.compile(r"total_tokens['\"]?\s*[=:]\s*\d+[^\n]*\)\s*$")
_END_OF_CALL = re.compile(r"(?<!\w)type\s*=\s*'function'\W*\)\s*$")
_FIGURES = re.compile(  # where a figure stands on which a verdict rests
    r"(?:arguments|parameters)['\"]?\s*[=:]\s*['\"]?\{[^{}]{0,400}\}|[a-z]+_tokens['\"]?\s*[=:]\s*\d+"
)
_USAGE = re.compile(r"usage(?!\s*['\"]?\s*[=:]\s*(?:None|null))", re.IGNORECASE)
_MOST_LINES = 200
_HARD = 0.5
_SOURCE = re.compile(r"^\s*(?:from|import|def|class|return|print)\b|isinstance|->|^\s*\w+\s*:\s*ChatCompletion\b")
_BEST = 3
_LOOKALIKE = {"0": "86", "1": "7", "3": "8", "5": "6", "6": "5", "7": "1", "8": "3", "9": "0"}


@dataclass(frozen=True)
class Found:
    """A reading, and the lines that it took."""

    first: int
    last: int
    reading: CompletionSeen


def find_completions(sheet: Sheet) -> Iterator[Found]:
    """Every printed answer, in its order; a part of one, where the picture does not show its beginning or its end."""
    number = 0
    while number < len(sheet.lines):
        text = sheet.lines[number].text
        start = _REPR.search(text) or _JSON.search(text)
        cut = start is None and _PIECE.search(text) is not None
        if (start is None and not cut) or _SOURCE.search(text):
            number += 1
            continue
        at = start.start() if start else 0
        first = number
        if start and text[at : at + 1] not in "{[C":
            first = next(
                (each for each in range(number, max(-1, number - 6), -1) if "{" in sheet.lines[each].text), number
            )
            at = 0 if first != number else at
        last = _last(sheet, first, at)
        seen = _read(sheet, first, last, at, begun=not cut)
        if seen:
            yield Found(first, last, seen)
        number = max(last, number) + 1


def _last(sheet: Sheet, first: int, at: int) -> int:
    """The line where the object ends: its brackets are closed, or what follows is something else."""
    lines = sheet.lines
    widest = max(len(line.text) for line in lines[first : first + _MOST_LINES])
    for number in range(first, min(len(lines), first + _MOST_LINES)):
        text = "\n".join(line.text for line in lines[first : number + 1])[at:]
        if closing(text) is not None:
            return number
        following = lines[number + 1].text if number + 1 < len(lines) else ""
        short = len(lines[number].text) < 0.97 * widest
        if _END.search(lines[number].text) or (short and _END_OF_CALL.search(lines[number].text)):
            return number
        if _REPR.match(following.strip()) and not lines[number].text.rstrip().endswith(("(", "[", "=", ",")):
            return number
        closed = "{" not in text or lines[number].text.rstrip().endswith(("}", ")", "]"))
        if _BARE.match(following) and short and closed:
            return number
        if prompt_of(following) is not None or following.startswith("Traceback"):
            return number
    return min(len(lines), first + _MOST_LINES) - 1


def _read(sheet: Sheet, first: int, last: int, at: int, *, begun: bool) -> CompletionSeen | None:
    place = sheet.place(first, last)
    picture = sheet.picture is not None
    lines = Lines(sheet.lines[first : last + 1], at)
    joined, best = _best(lines, begun=begun, picture=picture)
    if best is None:
        return None
    fields, whole = best.fields, joined.text
    complete = begun and (best.exact or (fields.total_tokens is not None and bool(re.search(r"[)}\]]\W*$", whole))))
    doubt = ""
    if picture:
        doubt = _doubt(fields, whole, confidence=place.confidence, complete=complete)
        doubt = doubt or ("a figure of it is hard to read" if _dim(lines, joined) else "")
        doubt = doubt or _cut_number(lines, joined, fields, begun=begun)
    return CompletionSeen(
        place=place,
        id=fields.id,
        model=repaired(fields.model) if picture and fields.model else fields.model,
        created=fields.created,
        content=fields.content,
        finish_reason=fields.finish_reason,
        tool_calls=fields.tool_calls,
        prompt_tokens=fields.prompt_tokens,
        completion_tokens=fields.completion_tokens,
        total_tokens=fields.total_tokens,
        complete=complete,
        doubt=doubt,
    )


@dataclass(frozen=True)
class _Parsed:
    fields: Fields
    exact: bool  # a parser read it, to its end

    @property
    def good(self) -> int:
        return 2 * _clear(self.fields) + self.exact


def _best(lines: Lines, *, begun: bool, picture: bool) -> tuple[Joined, _Parsed | None]:
    """The likeliest joining of the lines that a parser reads, its calls, too; else one whose calls can be read."""
    found: tuple[Joined, _Parsed | None] = lines.first(), None
    for joined in lines.joinings():
        parsed = _parsed(joined.text, begun=begun, picture=picture)
        if parsed is not None and parsed.good > (found[1].good if found[1] else -1):
            found = joined, parsed
        if parsed is not None and parsed.good == _BEST:
            break
    return found


def _parsed(whole: str, *, begun: bool, picture: bool) -> _Parsed | None:
    fields = (read_repr(whole) or read_json(whole)) if begun else None
    exact = fields is not None
    if fields is None or picture:
        fields = _filled(fields, read_loosely(whole))
    return None if fields is None else _Parsed(fields, exact)


def _clear(fields: Fields) -> bool:
    return not fields.garbled and (bool(fields.tool_calls) or fields.finish_reason != "tool_calls")


def _cut_number(lines: Lines, joined: Joined, fields: Fields, *, begun: bool) -> str:
    """A doubt where a number of a call, or a count, may go on in the cell that is gone at the window's edge."""
    for other in lines.longer(joined):
        parsed = _parsed(other.text, begun=begun, picture=True)
        if parsed is not None and _clear(parsed.fields) and _told(parsed.fields) != _told(fields):
            return "a digit may be gone at the window's edge"
    return ""


def _told(fields: Fields) -> tuple[object, ...]:
    calls = [(each.name, json.loads(each.arguments) if is_json(each.arguments) else "") for each in fields.tool_calls]
    return calls, fields.prompt_tokens, fields.completion_tokens, fields.total_tokens


def _filled(fields: Fields | None, loose: Fields | None) -> Fields | None:
    """What the parser read, with what only the loose reader found: OCR may misspell the name of a field."""
    if fields is None or loose is None:
        return fields or loose
    missing = {
        each.name: getattr(loose, each.name)
        for each in dataclasses.fields(fields)
        if getattr(fields, each.name) in (None, ()) and getattr(loose, each.name)
    }
    return dataclasses.replace(fields, **missing)


def _doubt(fields: Fields, whole: str, *, confidence: float, complete: bool) -> str:
    """Why what OCR read may not be what stands there; empty where nothing speaks against it."""
    if any(not call.arguments for call in fields.tool_calls) or fields.garbled:
        return "the arguments of a call cannot be read"
    if complete and fields.finish_reason == "tool_calls" and not fields.tool_calls:
        return "the calls cannot be read"
    if "\ufffd" in "".join(call.arguments + call.name for call in fields.tool_calls):
        return "a letter of a call cannot be read"
    tokens = (fields.prompt_tokens, fields.completion_tokens, fields.total_tokens)
    if complete and _USAGE.search(whole) and None in tokens:
        return "a count of tokens cannot be read"
    if None not in tokens and confidence < 0.95 and _one_slip(*(int(each or 0) for each in tokens)):
        return "the counts of tokens do not add up, and one digit may be misread"
    return ""


def _dim(lines: Lines, joined: Joined) -> bool:
    """Whether a count of tokens, or a call's argument, was read with little confidence."""
    spans = [found.span() for found in _FIGURES.finditer(joined.text)]
    for number, line in enumerate(lines.lines):
        at = 0
        for word in line.words:
            text = repaired(word.text)
            at = max(at, line.text.find(text, at))
            begin, end = joined.column(number, at), joined.column(number, at + len(text))
            at += len(text)
            hard = word.confidence <= _HARD and any(each.isdigit() for each in text)
            if hard and any(begin < most and least < end for least, most in spans):
                return True
    return False


def _one_slip(prompt: int, completion: int, total: int) -> bool:
    """Whether they do not add up, and would if OCR had taken one digit for another that looks like it."""
    if prompt + completion == total:
        return False
    for number, value in enumerate((prompt, completion, total)):
        text = str(value)
        for at, digit in enumerate(text):
            for other in _LOOKALIKE.get(digit, ""):
                given = [prompt, completion, total]
                given[number] = int(text[:at] + other + text[at + 1 :])
                if given[0] + given[1] == given[2]:
                    return True
    return False
