"""Blocks as a reader finds them, the sections they stand under, and what is code although nothing says so."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lab3.reports.commands_lines import has_cjk, prompt_of, runs, stands_alone
from lab3.reports.model import Block, BlockKind, Picture

MOST_CHARACTERS = 200_000  # of one block
_SHORT = 60  # characters of a line that stands in a heading's place
_BOLD, _LINE = 7, 8  # levels of what stands in a heading's place, below any heading
_SENTENCE_ENDS = ("。", "；", ";", "！", "!", "？", "?", "，", ",", ".")
_PYTHON = re.compile(
    r"(?:import |from [\w.]+ import |def \w+\(|class \w+|print\(|return\b|if .+:$|for .+ in .+:$|else:$|with .+:$"
    r"|try:$|@\w|[\w.]+(?:\[.+\])? ?=[^=])"
)
_SHOWN = re.compile(  # sizes of folders, nvidia-smi's table, printed objects, logs
    r"(?:[\d.]+[KMGT]B?\s+\S+$|total \d|[d-]r[w-]x|[|+][-=+|]{3}|\|.*\|$|ChatCompletion\(|\{|\}|\[|\]"
    r"|\d{4}-\d\d-\d\d[ T]|INFO|WARNING|ERROR|Traceback|\S+\.py:\d+|HINT:)"
)
_BAR = re.compile(r"\d+%\s*[|█-▏]|\d+/\d+ \[|\d+\s*/\s*\d+\s*MiB")


@dataclass
class Blocks:
    """The blocks of a report while it is read. `bold` has the places of those that are bold from end to end."""

    found: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bold: set[int] = field(default_factory=set)
    loose: set[int] = field(default_factory=set)  # places of code that nothing marks

    def add(
        self,
        kind: BlockKind,
        text: str,
        *,
        line: int | None = None,
        level: int = 0,
        language: str = "",
        rows: tuple[tuple[str, ...], ...] = (),
        codes: tuple[str, ...] = (),
        bold: bool = False,
        loose: bool = False,
    ) -> None:
        """A block of text; nothing is added where there is none."""
        if kind not in ("code", "output"):
            text = text.strip()
        text = text.strip("\n")
        if not text.strip():
            return
        if len(text) > MOST_CHARACTERS:
            self.problems.append(f"a text of {len(text)} characters was cut at {MOST_CHARACTERS}")
            text = text[:MOST_CHARACTERS]
        if bold:
            self.bold.add(len(self.found))
        if loose:
            self.loose.add(len(self.found))
        self.found.append(
            Block(kind=kind, text=text, line=line, level=level, language=language, rows=rows, codes=codes)
        )

    def add_picture(self, picture: Picture, *, line: int | None = None, under: tuple[str, ...] = ()) -> None:
        """`under`: what heads it within a table."""
        self.found.append(Block(kind="image", text=picture.alt, line=line, picture=picture, section=under))

    def add_output(self, text: str) -> None:
        """What a cell of a notebook printed; it goes on with what it printed right before."""
        last = self.found[-1] if self.found else None
        if last is None or last.kind != "output" or len(last.text) + len(text) > MOST_CHARACTERS:
            self.add("output", text)
        elif text.strip():
            gap = "" if text.startswith("\n") else "\n"
            self.found[-1] = replace(last, text=last.text + gap + text.rstrip("\n"))

    def extend(self, other: Blocks, *, quoted: bool = False) -> None:
        """All that another reader found. What is `quoted` is so whatever its kind, unless it is code or a picture."""
        start = len(self.found)
        self.bold.update(start + place for place in other.bold)
        self.loose.update(start + place for place in other.loose)
        self.problems += other.problems
        for block in other.found:
            prose = quoted and block.kind in ("paragraph", "list_item")
            self.found.append(replace(block, kind="quote") if prose else block)

    def forget_lines(self) -> None:
        """For a text that is no file, such as a notebook's cell."""
        self.found = [replace(block, line=None) for block in self.found]

    def put_on(self, page: int) -> None:
        """Of a PDF a block's line is its page."""
        self.found = [replace(block, line=page) for block in self.found]

    def join_terminals(self) -> None:
        """Where each line of a terminal was pasted as a paragraph of its own, they are one block again."""
        joined = Blocks(problems=self.problems)
        for place, block in enumerate(self.found):
            last = joined.found[-1] if joined.found else None
            loose = place in self.loose
            shown = loose or (block.kind == "paragraph" and place not in self.bold and _is_shown(block.text))
            if last is not None and len(joined.found) - 1 in joined.loose and shown:
                joined.found[-1] = replace(last, text=f"{last.text}\n{block.text}")
                continue
            if place in self.bold:
                joined.bold.add(len(joined.found))
            if loose:
                joined.loose.add(len(joined.found))
            joined.found.append(block)
        self.found, self.bold, self.loose = joined.found, joined.bold, joined.loose

    def with_sections(self) -> tuple[Block, ...]:
        """The blocks, each under its headings and under the line that stands in a heading's place."""
        stack: list[tuple[int, str]] = []
        done = []
        for place, block in enumerate(self.found):
            level = self._level(place)
            if level:
                stack = [each for each in stack if each[0] < level]
            elif block.kind in ("paragraph", "list_item", "quote"):
                stack = [each for each in stack if each[0] < _LINE]
            done.append(replace(block, section=(*(text for _, text in stack), *block.section)))
            if level:
                stack.append((level, block.text))
        return tuple(done)

    def _level(self, place: int) -> int:
        """Of a heading, or of what stands in its place: a bold line, one that ends in a colon, one before a picture."""
        block = self.found[place]
        if block.kind == "heading":
            return block.level or 1
        if block.kind not in ("paragraph", "list_item") or "\n" in block.text or len(block.text) > _SHORT:
            return 0
        if block.text.endswith((":", "：")):
            return _BOLD if place in self.bold else _LINE
        if block.text.endswith(_SENTENCE_ENDS):
            return 0
        if place in self.bold:
            return _BOLD
        following = self.found[place + 1] if place + 1 < len(self.found) else None
        shows = following is not None and (following.kind in ("image", "code", "output", "table"))
        return _LINE if shows else 0


def looks_like_code(text: str) -> bool:
    """Whether a text that nothing marks is code, or what a terminal shows, and no prose."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return False
    alike = sum(_is_code(line) for line in lines)
    prose = sum(_is_prose(line) for line in lines)
    return alike > prose and alike * 2 >= len(lines)


def is_prose(text: str) -> bool:
    """Whether a text that is indented like code is prose."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    alike = sum(_is_code(line) for line in lines)
    prose = sum(_is_prose(line) for line in lines)
    return prose > alike and prose * 2 >= len(lines)


def is_python(text: str) -> bool:
    """Whether it is Python that does something; `ls` and `nvidia-smi` parse, too, and are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    doing = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.For, ast.While, ast.With)
    return any(isinstance(node, doing) for node in tree.body) or any(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in tree.body
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """Lines that belong together; `first` is the place of the first one."""

    lines: tuple[str, ...]
    first: int
    code: bool

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def runs_of(lines: Iterable[str]) -> Iterator[Run]:
    """Prose and unmarked commands apart. A command goes on after a backslash, or where a flag begins the next line."""
    gathered: list[str] = []
    first, code, goes_on = 0, False, False
    for place, line in enumerate(lines):
        plain = line.strip()
        follows = code and (goes_on or (plain.startswith("--") and plain[2:3].isalpha()))
        now = follows or (stands_alone(line) and len(line) < 4096)
        if gathered and now != code:
            yield Run(lines=tuple(gathered), first=first, code=code)
            gathered, first = [], place
        gathered.append(line)
        code = now
        goes_on = now and plain.endswith("\\")
    if gathered:
        yield Run(lines=tuple(gathered), first=first, code=code)


def _is_shown(text: str) -> bool:
    return all(_SHOWN.match(line.strip()) or _BAR.search(line) for line in text.split("\n"))


def _is_code(line: str) -> bool:
    prompt = prompt_of(line)
    if prompt and (prompt.full or runs(line[prompt.end :])):
        return True
    if line.startswith((">>>", "!", "--", "#")) or line.endswith(("\\", "{", "(", "[")):
        return True
    return runs(line) or bool(_PYTHON.match(line)) or bool(_SHOWN.match(line))


def _is_prose(line: str) -> bool:
    plain = line.partition("#")[0]
    for quote in "\"'":
        plain = "".join(plain.split(quote)[::2])
    if has_cjk(plain):
        return not prompt_of(line) and not _SHOWN.match(line)
    words = plain.split()
    letters = sum(word.strip(".,;:()").isalpha() for word in words)
    return len(words) >= 5 and letters * 5 >= len(words) * 4 and not _is_code(line)
