"""The lines of a shell text that belong to LMDeploy's commands, joined as they were meant, with what breaks them.

Line ends, prompts and what word processors make of dashes, quotes and spaces are dealt with here, so that what is left
is text for a shell's parser. Nothing else of the text is kept, so junk around a command does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lab3.grading.problems import Problem, shown

Dialect = Literal["shell", "batch", "session"]  # a script, a script of Windows', or what a terminal or a report shows

MOST_CHARACTERS = 4096  # of one command; the parser takes time for junk that grows with its square
MOST_LINES = 60

_SPACES = frozenset("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")
_INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufeff\0")
_DASHES = frozenset("‐‑‒–—―−﹣－﹘")
_QUOTES = {"“": '"', "”": '"', "„": '"', "‟": '"', "＂": '"', "‘": "'", "’": "'", "‚": "'", "‛": "'", "＇": "'"}
_WORDS = ("lmdeploy", "api_server", "auto_awq")
_ENDED = "the command ends here, and the next line is another one"
_ENDS = {"shell": "\\", "session": "\\", "batch": "^`"}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A command or an assignment: `text` is repaired and has as many lines as `written`, the first of them `line`."""

    line: int
    written: str
    text: str
    flaws: tuple[Problem, ...]


def chunks(text: str, *, source: str, first_line: int = 1, dialect: Dialect = "shell") -> Iterator[Chunk]:
    """Each command that may be one of LMDeploy's, and each assignment, in their order."""
    crlf = "\r\n" in text
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    number = 0
    while number < len(lines):
        if not _wanted(lines[number], dialect):
            number += 1
            continue
        gathering = _Gathering(lines, number, source=source, first_line=first_line, dialect=dialect)
        chunk, taken = gathering.gather()
        number += taken
        if crlf and dialect == "shell" and "\n" in chunk.written and _names_lmdeploy(chunk.written):
            what = "line ends of Windows: on Linux the carriage return becomes part of the last word of each line"
            flaw = Problem(kind="crlf", severity="note", what=what, source=source, line=chunk.line)
            chunk = Chunk(line=chunk.line, written=chunk.written, text=chunk.text, flaws=(*chunk.flaws, flaw))
        yield chunk


class _Gathering:
    """Joins the lines of one command or assignment, and tells what keeps a shell from doing so."""

    def __init__(self, lines: list[str], start: int, *, source: str, first_line: int, dialect: Dialect) -> None:
        self._lines, self._start, self._dialect = lines, start, dialect
        self._source, self._first_line = source, first_line
        self._ours = _names_lmdeploy(lines[start])
        self._number = start
        self._repaired: list[str] = []
        self._flaws: list[Problem] = []

    def gather(self) -> tuple[Chunk, int]:
        """The chunk, and how many lines it takes."""
        while self._add_line():
            self._number += 1
        if self._ours and (quote := _open_quote("\n".join(self._repaired))):
            self._tell("quote", "a quote that is never closed")
            self._repaired[-1] += quote
        taken = self._number + 1 - self._start
        chunk = Chunk(
            line=self._first_line + self._start,
            written="\n".join(self._lines[self._start : self._start + taken]),
            text="\n".join(self._repaired),
            flaws=tuple(self._flaws),
        )
        return chunk, taken

    def _add_line(self) -> bool:
        """Whether the command goes on in the next line."""
        line = self._lines[self._number]
        if self._dialect != "shell":
            line = _without_prompt(line) if self._dialect == "session" else _from_batch(line)
        comment = self._number > self._start and line.lstrip().startswith("#")
        if comment:
            self._tell("comment", "a comment in the middle of a command ends it")
            line = ""
        line, trailing, goes_on = _continuation(line, _ENDS[self._dialect])
        if self._ours:
            if trailing:
                self._tell("backslash", f"{trailing} after the backslash: {_ENDED}")
            for kind, what, quoted, instead in _untypeset(line):
                self._tell(kind, what, quoted, instead)
            line = "".join(_typed(line))
        goes_on = goes_on or comment
        following = self._following()
        if following is None:
            self._repaired.append(line)
            return False
        apart = bool(trailing)  # what was meant to be joined is not glued together
        if self._ours and not goes_on and _begins_with_flag(following):
            self._tell("no_backslash", f"no backslash at the end of this line: {_ENDED}")
            goes_on = apart = True
        elif self._ours and goes_on and not apart and _glued(line, following):
            self._tell("space", "no space before this backslash, nor before the next line: two words become one")
            apart = True
        self._repaired.append(line + (" " * apart + "\\" if goes_on else ""))
        return goes_on or self._unfinished()

    def _following(self) -> str | None:
        number = self._number + 1
        return self._lines[number] if number < min(len(self._lines), self._start + MOST_LINES) else None

    def _unfinished(self) -> bool:
        """Whether a quote or an array is open, and closed in what follows."""
        text = "\n".join(self._repaired)
        rest = self._lines[self._number + 1 : self._start + MOST_LINES]
        if "=(" in text and ")" not in text:
            return any(")" in line for line in rest)
        quote = _open_quote(text)
        return bool(quote) and any(quote in line for line in rest)

    def _tell(self, kind: str, what: str, quoted: str = "", instead: str = "") -> None:
        self._flaws.append(
            Problem(
                kind=kind,
                severity="broken",
                what=what,
                source=self._source,
                line=self._first_line + self._number,
                text=shown(quoted or self._lines[self._number].strip()),
                instead=shown(instead),
            )
        )


def _wanted(line: str, dialect: Dialect) -> bool:
    plain = line.strip()
    if plain.startswith("#") or (dialect == "batch" and plain.lower().startswith(("rem ", "::"))):
        return False
    return _names_lmdeploy(plain) or _assigns(plain, dialect)


def _names_lmdeploy(text: str) -> bool:
    return any(word in text for word in _WORDS)


def _assigns(line: str, dialect: Dialect) -> bool:
    if dialect == "session":
        line = _without_prompt(line).strip()
    for word in ("export ", "declare -a ", "local ", "readonly ", "set "):
        line = line.removeprefix(word)
    name, equals, _ = line.strip('"@').partition("=")
    name = name.removesuffix("+")
    return bool(equals) and name.isascii() and name.isidentifier() and len(line) <= MOST_CHARACTERS


def _continuation(line: str, ends: str) -> tuple[str, str, bool]:
    """The line without its continuation mark, what follows that mark although it must not, and whether it goes on."""
    plain = line.rstrip(" \t" + "".join(_SPACES | _INVISIBLE))
    if plain and plain[-1] in ends and (len(plain) - len(plain.rstrip(plain[-1]))) % 2 == 1:
        trailing = len(line) - len(plain)
        return plain[:-1], "a space" if trailing == 1 else f"{trailing} spaces" if trailing else "", True
    for space in (" ", "\t"):
        before, mark, _ = line.partition(f"{ends[0]}{space}#")
        if mark:
            return before, "a comment", True
    return line, "", False


def _glued(line: str, following: str) -> bool:
    return not line[-1:].isspace() and following[:1] not in ("", " ", "\t", ">", "#") and bool(line.strip())


def _begins_with_flag(line: str) -> bool:
    plain = line.lstrip()
    return plain[:1] in _DASHES | {"-"} and plain.lstrip("-" + "".join(_DASHES))[:1].isalpha() and plain[:2] != "- "


def _open_quote(text: str) -> str:
    quote, escaped = "", False
    for each in text:
        if escaped:
            escaped = False
        elif each == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if each == quote else quote
        elif each in "'\"":
            quote = each
        elif each == "#":
            return ""
    return quote


# ------------------------------------------------------------------------------------------------- what is not typed


def _untypeset(line: str) -> Iterator[tuple[str, str, str, str]]:
    """(kind, what, quoted, what to write) of each character in the line's commands that no keyboard for shells has."""
    code = _code(line)
    if any(each in code for each in _QUOTES):
        quoted = next(word for word in code.split() if any(each in word for each in _QUOTES))
        what = "quotes of a word processor: a shell takes them as part of the word"
        yield "quote", what, quoted, "".join(_QUOTES.get(each, each) for each in quoted)
    for word in code.split():
        plain = "".join(_typed(word))
        if word[0] in _DASHES | {"-"} and plain != word and any(each in word for each in _DASHES | {"＝"}):
            yield "dash", "a dash of a word processor, which begins no flag", word, plain
    if any(each in code for each in _SPACES):
        yield "space", "a space that is none for a shell (full-width or non-breaking)", "", "ordinary spaces"
    if any(each in code for each in _INVISIBLE):
        yield "space", "an invisible character within the command", "", "the words typed anew"


def _typed(line: str) -> Iterator[str]:
    """The line as one would have typed it."""
    begins, flag, position = True, False, 0
    end = len(_code(line))
    while position < end:
        each = line[position]
        if each in _SPACES or each in " \t":
            begins, flag = True, False
            yield " "
        elif each in _DASHES or (each == "-" and begins):
            run = line[position:end]
            run = run[: len(run) - len(run.lstrip("-" + "".join(_DASHES)))]
            if begins:
                flag = True
                short = len(line[position + len(run) : end].split(" ")[0]) == 1
                yield run if run.isascii() else "-" if short else "--"
            else:
                yield "-" * len(run) if flag else run
            position += len(run) - 1
            begins = False
        elif each not in _INVISIBLE:
            begins = False
            yield "=" if each == "＝" and flag else _QUOTES.get(each, each)
        position += 1
    yield line[end:]


def _code(line: str) -> str:
    """The line before its comment."""
    for space in (" #", "\t#"):
        line = line.partition(space)[0]
    return line


# ----------------------------------------------------------------------------------------- prompts, and Windows' own


def _without_prompt(line: str) -> str:
    """`(base) root@host:~# lmdeploy …` → `lmdeploy …`, and the like: `$ `, `> `, `!`, `PS C:\\>`."""
    plain = line.lstrip()
    if plain.startswith("(") and ") " in plain:  # a conda environment before the prompt
        rest = plain.partition(") ")[2].lstrip()
        plain = rest if _prompt_end(rest) else plain
    return plain[_prompt_end(plain) :].lstrip()


def _prompt_end(plain: str) -> int:
    """Where the prompt at the beginning ends; 0 if there is none."""
    if plain[:1] in "!$%❯➜›>" and plain[:2] not in ("$(", "${", "$'", "%%", ">>", ">&") and plain[1:2] in " \t":
        return 1
    if plain.startswith("!") and plain[1:2].isalpha():
        return 1
    for mark in "#$%>":
        before, found, after = plain.partition(mark)
        host = "@" in before and not any(each in before for each in "'\"=")
        drive = mark == ">" and before.removeprefix("PS ")[1:3] == ":\\"
        if found and (host or drive) and (after[:1] in ("", " ", "\t") or after[:1].isalpha()):
            return len(before) + 1
    return 0


def _from_batch(line: str) -> str:
    """A line for cmd.exe in a shell's words: paths, variables."""
    plain = line.strip().removeprefix("@")
    if plain[:4].lower() == "set ":
        name, _, value = plain[4:].strip().strip('"').partition("=")
        return f'{name}="{value}"'.replace("\\", "/")
    pieces = line.replace("\\", "/").split("%")
    named = [f"${{{piece}}}" if number % 2 and piece.isidentifier() else piece for number, piece in enumerate(pieces)]
    return "".join(named).removeprefix("@")
