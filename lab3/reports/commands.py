"""The commands in a report's text: in fences and cells, at prompts, in backquotes, in prose and tables.

What merely speaks of a command is none. Pictures are not looked at here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lab3.grading.python_source import read_python
from lab3.grading.shell_lines import MOST_CHARACTERS, chunks
from lab3.grading.shell_words import SimpleCommand, Variables, simple_commands
from lab3.reports.commands_lines import (
    KNOWN,
    LMDEPLOY_GROUPS,
    Prompt,
    lmdeploy_words,
    prompt_of,
    runs,
    stands_alone,
)
from lab3.reports.commands_lmdeploy import ChatCommand, lmdeploy_command
from lab3.reports.commands_windows import as_on_linux
from lab3.reports.model import Block, CommandSeen, Place, Report
from lab3.reports.reading_blocks import is_python
from lab3.reports.reading_fences import NEITHER_PYTHON_NOR_SHELL, PYTHON

__all__ = ["ChatCommand", "commands_in", "commands_of_text", "lmdeploy_command"]

MOST_COMMANDS = 1000  # of a report
MOST_LINES = 20_000  # of a block
_QUOTE = 2000  # characters
_OURS = ("lmdeploy", "api_server", "auto_awq")
_END_OF_SHELL = re.compile("[\u3000-\u303f\u3400-\u9fff\uff00-\uff0c\uff0e-\uff5e`]|\n\n")  # Chinese, or an empty line


def commands_in(report: Report) -> tuple[CommandSeen, ...]:
    """Every command that stands in the text of the report, in its order. Variables that it sets are put in."""
    variables: Variables = {}
    found: list[CommandSeen] = []
    for number, block in enumerate(report.blocks):
        following = report.blocks[number + 1] if number + 1 < len(report.blocks) else None
        ran = following is not None and following.kind == "output"
        found += islice(_of_block(block, number, variables, ran=ran), MOST_COMMANDS - len(found))
        if len(found) >= MOST_COMMANDS:
            break
    return tuple(found)


def commands_of_text(text: str, *, block: int, line: int | None = None) -> tuple[CommandSeen, ...]:
    """The commands in what a terminal shows, or in a script; its first line is `line` of the report."""
    return tuple(_Lines(text, number=block, line=line, variables={}).commands())


def _of_block(block: Block, number: int, variables: Variables, *, ran: bool) -> Iterator[CommandSeen]:
    match block.kind:
        case "code":
            yield from _of_code(block, number, variables, ran=ran)
        case "output":
            yield from _Lines(block.text, number=number, line=block.line, variables=variables).at_prompts()
        case "table":
            cells = [cell for row in block.rows for cell in row]
            yield from _of_prose("\n\n".join(cells), block.codes, block, number, variables)
        case "paragraph" | "list_item" | "quote" | "heading":
            yield from _of_prose(block.text, block.codes, block, number, variables)


# --------------------------------------------------------------------------------------------------------------- code


def _of_code(block: Block, number: int, variables: Variables, *, ran: bool) -> Iterator[CommandSeen]:
    language = block.language.lower()
    if language in NEITHER_PYTHON_NOR_SHELL:
        return
    text = block.text
    python = language in PYTHON
    if text.lstrip().startswith(("%%bash", "%%sh", "%%shell", "%%script", "%%cmd")):
        text = "\n" + text.lstrip().partition("\n")[2]
        python = False
    elif is_python(_without_magic(text)) and (python or not language or _has_magic(text)):
        yield from _of_python(block, number, variables, ran=ran)
        return
    lines = _Lines(text, number=number, line=block.line, variables=variables, strict=python, ran=ran and python)
    yield from lines.commands()


def _of_python(block: Block, number: int, variables: Variables, *, ran: bool) -> Iterator[CommandSeen]:
    """What IPython gives to a shell, and what Python starts."""
    kept = "\n".join(line if _is_magic(line) else "" for line in _joined_magic(block.text))
    yield from _Lines(kept, number=number, line=block.line, variables=variables, ran=ran).commands()
    for command in read_python(_without_magic(block.text)).commands:
        line = None if block.line is None else block.line + command.line - 1
        if command.words:
            argv = tuple(word.text for word in command.words)
            if runs(" ".join(argv)):
                place = Place(block=number, quote=command.text[:_QUOTE], line=line)
                yield CommandSeen(text=" ".join(argv), argv=argv, place=place)
        else:
            yield from _Lines(command.text, number=number, line=line, variables=variables).commands()


def _is_magic(line: str) -> bool:
    return line.lstrip().startswith(("!", "%cd ", "%pip ", "%conda ", "%sx ", "%system "))


def _has_magic(text: str) -> bool:
    return any(_is_magic(line) for line in text.split("\n"))


def _joined_magic(text: str) -> Iterator[str]:
    """The lines, where a magic one that goes on after a backslash is one line, and empty ones keep the count."""
    lines = iter(text.split("\n"))
    for line in lines:
        gaps = 0
        while _is_magic(line) and line.rstrip().endswith("\\"):
            following = next(lines, None)
            if following is None:
                break
            line, gaps = f"{line.rstrip()[:-1]} {following.strip()}", gaps + 1
        yield line
        yield from [""] * gaps


def _without_magic(text: str) -> str:
    return "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in _joined_magic(text))


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of a shell, from its prompt on; `taken` lines of the text belong to it."""

    text: str
    written: str
    taken: int


class _Lines:
    """The commands in lines of code. Where there are prompts, what has none is output."""

    def __init__(
        self,
        text: str,
        *,
        number: int,
        line: int | None,
        variables: Variables,
        strict: bool = False,
        ran: bool = False,
    ) -> None:
        self._written = text.split("\n")[:MOST_LINES]
        self._lines = as_on_linux(self._written)
        self._number, self._line, self._variables = number, line, variables
        self._strict, self._ran = strict, ran
        self._prompts = [self._prompt(each) for each in self._lines]

    def commands(self) -> Iterator[CommandSeen]:
        """All of them, in their order."""
        prompted = any(prompt is not None for prompt in self._prompts)
        yield from self._walk(only_prompts=prompted)

    def at_prompts(self) -> Iterator[CommandSeen]:
        """Those that a prompt stands before."""
        yield from self._walk(only_prompts=True)

    def _prompt(self, line: str) -> Prompt | None:
        if line.lstrip().startswith("!") and line.lstrip()[1:2].isalpha():
            return None
        prompt = prompt_of(line)
        return prompt if prompt and (prompt.full or runs(line[prompt.end :])) else None

    def _walk(self, *, only_prompts: bool) -> Iterator[CommandSeen]:
        at = 0
        while at < len(self._lines):
            prompt = self._prompts[at]
            line = self._lines[at]
            text = line[prompt.end :] if prompt else line.lstrip()
            if (only_prompts and prompt is None) or not text.strip() or text.lstrip().startswith("#"):
                at += 1
                continue
            if prompt is None and text[:1] in "!%" and text[1:2].isalpha():
                text = text[1:].removeprefix("sx ").removeprefix("system ")
            elif prompt is None and text.startswith("$ "):
                text = text[2:]
            gathered = self._gather(at, text)
            if gathered is None:
                at += 1
                continue
            yield from self._commands(gathered, at, prompt)
            at += gathered.taken
            at = self._after_document(gathered.text, at)

    def _gather(self, at: int, text: str) -> _Line | None:
        """The command that begins in this line; None if none does. An assignment is kept for what comes after."""
        if not self._begins(text):
            if _assigns(text):
                simple_commands(text, line=0, variables=self._variables)
            return None
        following = self._lines[at + 1 : at + 61]
        stop = next((each for each, _ in enumerate(following, 1) if self._prompts[at + each] is not None), 61)
        lines = [text, *following[: stop - 1]]
        if any(word in text for word in _OURS) and not text.lstrip().startswith(("export ", "echo ")):
            chunk = next(chunks("\n".join(lines), source="", dialect="session"), None)
            if chunk is not None and chunk.line == 1:
                taken = chunk.written.count("\n") + 1
                return self._made(chunk.text, at, taken)
        taken = 1
        while lines[taken - 1].rstrip().endswith("\\") and taken < len(lines):
            taken += 1
        joined = " \\\n".join(each.rstrip().removesuffix("\\").removeprefix("> ") for each in lines[:taken])
        return self._made(_typed(joined), at, taken)

    def _made(self, text: str, at: int, taken: int) -> _Line | None:
        if len(text) > MOST_CHARACTERS:
            return None
        return _Line(text=text, written="\n".join(self._written[at : at + taken]), taken=taken)

    def _begins(self, text: str) -> bool:
        if self._strict:
            return stands_alone(text) or text.strip() in KNOWN
        return runs(text) or any(runs(part) for part in _parts(text))

    def _commands(self, line: _Line, at: int, prompt: Prompt | None) -> Iterator[CommandSeen]:
        where = None if self._line is None else self._line + at
        place = Place(block=self._number, quote=line.written[:_QUOTE], line=where)
        text = " ".join(line.text.replace("\\\n", " ").split())
        typed = prompt is not None or self._ran
        folder = prompt.folder if prompt else ""
        for command in _simple(line.text, self._variables):
            argv = tuple(word.text for word in command.words)
            if argv and runs(" ".join(argv)):
                yield CommandSeen(text=text, argv=argv, place=place, at_prompt=typed, folder=folder)

    def _after_document(self, text: str, at: int) -> int:
        """Where a shell goes on after what it was given to read: `cat > a.py << EOF` … `EOF`."""
        _, mark, rest = text.partition("<<")
        end = rest.lstrip("-<").strip().split()[0].strip("'\"") if mark and rest.strip("-< ") else ""
        if not end:
            return at
        for each in range(at, len(self._lines)):
            if self._lines[each].strip() == end:
                return each + 1
        return at


def _simple(text: str, variables: Variables) -> Iterator[SimpleCommand]:
    """A text's simple commands; of `export A=b`, which the grammar keeps apart, the words, too."""
    if text.lstrip().startswith("export ") and len(text.split("&&")) == 1:
        words = tuple(simple_commands(f"command {text}", line=0, variables=dict(variables)))
        simple_commands(text, line=0, variables=variables)
        for each in words:
            yield SimpleCommand(words=each.words[1:])
        return
    yield from simple_commands(text, line=0, variables=variables)


def _parts(text: str) -> list[str]:
    parts = [text]
    for mark in ("&&", "||", ";", "|"):
        parts = [each for part in parts for each in part.split(mark)]
    return [part.strip() for part in parts[1:20] if part.strip()]


def _assigns(text: str) -> bool:
    name, equals, _ = text.strip().partition("=")
    return bool(equals) and name.isascii() and name.isidentifier() and len(text) < MOST_CHARACTERS


def _typed(text: str) -> str:
    """Dashes of a word processor before a flag, and its quotes, as one types them."""
    for typeset, typed in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("\xa0", " "), ("\u3000", " ")):
        text = text.replace(typeset, typed)
    words = text.split(" ")
    for number, word in enumerate(words):
        bare = word.lstrip("–—−-")
        if word[:1] in ("–", "—", "−") and bare[:1].isalpha():
            words[number] = ("-" if len(bare) <= 2 else "--") + bare
    return " ".join(words)


# -------------------------------------------------------------------------------------------------------------- prose


def _of_prose(
    text: str, codes: tuple[str, ...], block: Block, number: int, variables: Variables
) -> Iterator[CommandSeen]:
    """Commands in backquotes, and those that stand in the sentence itself."""
    rest = text
    for code in codes:
        rest = rest.replace(code, "\n", 1)
        line = block.line + text[: max(0, text.find(code))].count("\n") if block.line is not None else None
        yield from _of_span(_joined_span(code), number, line, variables)
    for at, line_text in enumerate(rest.split("\n")):
        if any(each in line_text for each in ("：", ": ")) and "lmdeploy" not in line_text:
            after = max(line_text.rpartition("：")[2], line_text.rpartition(": ")[2], key=lambda part: -len(part))
            if stands_alone(after):
                line = None if block.line is None else block.line + min(at, text.count("\n"))
                yield from _of_span(after, number, line, variables)
    yield from _named_in(rest, block, number, variables)


def _of_span(code: str, number: int, line: int | None, variables: Variables) -> Iterator[CommandSeen]:
    """A command alone; its name alone is a mention."""
    prompt = prompt_of(code)
    plain = code[prompt.end :] if prompt else code
    words = plain.split()
    if "lmdeploy" in words[:4]:
        start = plain.index("lmdeploy")
        whole = lmdeploy_words(plain[start:]) == len(plain[start:].split())
    else:
        whole = stands_alone(plain)
    if whole:
        yield from _Lines(code, number=number, line=line, variables=variables).commands()


def _named_in(text: str, block: Block, number: int, variables: Variables) -> Iterator[CommandSeen]:
    """`lmdeploy …` with a model or flags in the middle of prose, up to what is none of its words."""
    start = 0
    while (at := text.find("lmdeploy ", start)) >= 0:
        start = at + 9
        before = text[at - 1 : at]
        if before and (before in "/_-.@~" or (before.isascii() and before.isalnum())):
            continue
        words = _shell_part(text[at : at + MOST_CHARACTERS]).split()
        if len(words) < 2 or words[1] not in LMDEPLOY_GROUPS:
            continue
        count = lmdeploy_words(" ".join(words))
        if not count:
            continue
        command = " ".join(word for word in words[:count] if word != "\\").rstrip(".,;:)")
        line = None if block.line is None else block.line + text[:at].count("\n")
        yield from _Lines(command, number=number, line=line, variables=variables).commands()
        start = at + 9


def _shell_part(text: str) -> str:
    """What of a sentence can be a command: up to Chinese, or an empty line."""
    ends = _END_OF_SHELL.search(text)
    return text[: ends.start()] if ends else text


def _joined_span(code: str) -> str:
    """Markdown makes one line of a span of code; the backslashes at its lines' ends stay."""
    words = code.replace("\n", " ").split(" ")
    return " ".join(word for word in words if word != "\\").strip()
