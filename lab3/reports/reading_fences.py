"""Markdown as students leave it, put right before it is parsed: fences that are never closed or closed by a line with
text after it, headings without their space, and settings on top. A line keeps the number that it has in the file."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab3.reports.commands_lines import has_cjk, prompt_of, runs

# What students name after a fence.
_PYTHON = "python python3 py pycon ipython ipython3"
_SHELL = "bash sh shell zsh console terminal cmd powershell ps1 bat batch shell-session shellsession ansi"
_CODE = "json jsonc yaml yml toml ini html xml css javascript js ts c cpp c++ java go rust sql diff latex tex r ruby"
_DRAWING = "mermaid"
_TEXT = "text txt plain plaintext none log output md markdown makefile dockerfile vim conf nginx"
PYTHON = frozenset(_PYTHON.split())
NEITHER_PYTHON_NOR_SHELL = frozenset([*_CODE.split(), _DRAWING])
LANGUAGES = PYTHON | NEITHER_PYTHON_NOR_SHELL | frozenset([*_SHELL.split(), *_TEXT.split()])
_ODD_MARKS = "｀·'"  # what keyboards make of a backquote
_QUOTED = ("md", "markdown", "html", "xml")  # a picture in these is code


@dataclass(kw_only=True)
class Mended:
    """Lines to parse, and of each the place, from 0, of the line in the text that it is or follows from."""

    lines: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def place(self, line: int) -> int:
        return self.places[line] if line < len(self.places) else self.places[-1] if self.places else 0


@dataclass(frozen=True, kw_only=True)
class _Fence:
    """A line that opens or closes a fence. `before` it: quote marks, an item's mark, spaces."""

    before: str
    mark: str  # "```"
    info: str

    @property
    def language(self) -> str:
        words = self.info.split()
        return words[0].strip("{}.").lower() if words else ""

    @property
    def quotes(self) -> int:
        return self.before.count(">")

    @property
    def indent(self) -> int:
        return len(self.before.expandtabs(4))


def mend(text: str) -> Mended:
    """The text's lines, with a line added where a fence has to end, and without the settings that stand on top."""
    lines = text.split("\n")
    mender = _Mender(lines, doubtful=False)
    if not mender.run():  # some fence is not closed: it may be one long before the last
        mender = _Mender(lines, doubtful=True)
        mender.run()
    return mender.mended


class _Mender:
    """Walks over the lines. `doubtful`: headings and prose end a fence, too, not only pictures."""

    def __init__(self, lines: list[str], *, doubtful: bool) -> None:
        self._lines, self._doubtful = lines, doubtful
        self.mended = Mended()
        self._open: _Fence | None = None
        self._opened = 0  # place of the line that opened it
        self._begun = 0  # how many lines were kept up to it

    def run(self) -> bool:
        """Whether every fence was closed by a line of the text, or by what follows it."""
        place = self._settings()
        whole = True
        while place < len(self._lines) or self._open is not None:
            if place >= len(self._lines):
                whole = False
                self._tell(f"the fence of line {self._opened + 1} is never closed")
                place = self._cut(place)
            elif self._open is not None:
                place = self._inside(self._open, place)
            else:
                place = self._outside(place)
        return whole

    def _settings(self) -> int:
        """Where the text begins after what some editors keep on top of it between two lines of dashes."""
        if self._lines[0].rstrip() != "---":
            return 0
        for place, line in enumerate(self._lines[1:41], 1):
            if line.rstrip() in ("---", "..."):
                return place + 1
            if line.strip() and ":" not in line and not line.startswith((" ", "-", "#")):
                break
        return 0

    def _outside(self, place: int) -> int:
        line = self._lines[place]
        fence = _fence_of(line)
        if fence is None or (fence.mark[0] == "`" and "`" in fence.info) or not self._opens(fence, place):
            self._put(_with_space(line), place)
            return place + 1
        above = self._lines[place - 1] if place else ""
        if fence.indent >= 4 and above.strip():
            self._put("", place)
        self._open, self._opened = fence, place
        self._put(fence.before + fence.mark.replace(fence.mark[0], _written(fence)) + fence.info, place)
        self._begun = len(self.mended.lines)
        return place + 1

    def _opens(self, fence: _Fence, place: int) -> bool:
        """Marks that no Markdown knows are a fence's if a line closes it."""
        if fence.mark[0] not in _ODD_MARKS:
            return True
        if fence.info and fence.language not in LANGUAGES:
            return False
        return any(line.strip() == fence.mark for line in self._lines[place + 1 : place + 200])

    def _inside(self, fence: _Fence, place: int) -> int:
        """A line of a fence; it may turn out that the fence ended before."""
        line = self._lines[place]
        if fence.quotes > line[: len(line) - len(line.lstrip(" >\t"))].count(">"):
            self._open = None  # the quote ends, and the fence with it
            return place
        other = _fence_of(line)
        if other is not None and other.mark[0] == fence.mark[0] and len(other.mark) >= len(fence.mark):
            return self._at_mark(fence, other, place)
        if self._is_of_the_report(fence, place):
            self._tell(f"the fence of line {self._opened + 1} is not closed before line {place + 1}")
            return self._cut(place)
        glued = line.rstrip()
        if fence.mark[0] == "`" and glued.endswith(fence.mark) and "`" not in glued[: -len(fence.mark)]:
            self._tell(f"the fence of line {self._opened + 1} is closed in the middle of line {place + 1}")
            self._put(self._indented(fence, glued[: -len(fence.mark)]), place)
            self._close(fence, place)
            return place + 1
        self._put(self._indented(fence, line), place)
        return place + 1

    def _at_mark(self, fence: _Fence, other: _Fence, place: int) -> int:
        if not other.info:
            self._close(fence, place)
            return place + 1
        if other.language in LANGUAGES or runs(other.info):
            self._tell(f"the fence of line {self._opened + 1} is not closed before that of line {place + 1}")
            return self._cut(place)
        self._tell(f"line {place + 1} closes a fence and goes on with text")
        self._close(fence, place)
        self._put(fence.before.replace("-", " ").replace("*", " ") + other.info, place)
        return place + 1

    def _cut(self, place: int) -> int:
        """End the fence before what is no code any more, at the latest before `place`; where to go on."""
        fence, end = self._open, place
        if fence is None:
            return place
        for number in range(self._opened + 1, min(place, len(self._lines))):
            if self._is_picture(number) or (not self._lines[number - 1].strip() and self._is_prose(number)):
                end = number
                break
        else:
            while end < len(self._lines) and end - 1 > self._opened and self._is_prose(end - 1):
                end -= 1  # the lines right above a picture, or above the next fence, are what introduces it
        keep = self._begun + end - self._opened - 1
        del self.mended.lines[keep:]
        del self.mended.places[keep:]
        self._close(fence, end - 1)
        return end

    def _is_of_the_report(self, fence: _Fence, place: int) -> bool:
        if fence.language in _QUOTED:
            return False
        after_gap = not self._lines[place - 1].strip()
        return self._is_picture(place) or (self._doubtful and after_gap and self._is_prose(place))

    def _is_picture(self, place: int) -> bool:
        line = self._lines[place].strip()
        return line.startswith(("![", "<img ", "[![")) and line.endswith((")", "]", ">", "}"))

    def _is_prose(self, place: int) -> bool:
        """Chinese that is neither a comment nor typed at a prompt nor part of code; a heading of two marks or more."""
        line = self._lines[place].strip()
        if line.startswith("##") and line.lstrip("#").startswith(" "):
            return has_cjk(line) or line.lstrip("# ")[:4].lower() in ("task", "step", "part")
        coded = any(each in line for each in "\"'{}=;|<>$") or line.startswith(("#", "//", "-", "*"))
        return has_cjk(line[:1]) and not coded and prompt_of(line) is None

    def _indented(self, fence: _Fence, line: str) -> str:
        """A line that is less indented than its fence would end the list's item that the fence stands in."""
        if fence.quotes or not line.strip():
            return line
        missing = fence.indent - (len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip()))
        return " " * missing + line if missing > 0 else line

    def _close(self, fence: _Fence, place: int) -> None:
        marks = "".join(each if each == ">" else " " for each in fence.before.expandtabs(4))
        self._put(marks + _written(fence) * len(fence.mark), place)
        self._open = None

    def _put(self, line: str, place: int) -> None:
        self.mended.lines.append(line)
        self.mended.places.append(place)

    def _tell(self, what: str) -> None:
        self.mended.problems.append(what)


def _written(fence: _Fence) -> str:
    return "~" if fence.mark[0] == "~" else "`"


def _fence_of(line: str) -> _Fence | None:
    at = 0
    while at < len(line) and at < 40:
        if line[at] in " \t>":
            at += 1
            continue
        item = _item_mark(line, at)
        if not item:
            break
        at = item
    kind = line[at : at + 1]
    if not kind or kind not in "`~" + _ODD_MARKS:
        return None
    length = len(line) - at - len(line[at:].lstrip(kind))
    if length < 3:
        return None
    return _Fence(before=line[:at], mark=line[at : at + length], info=line[at + length :].strip())


def _item_mark(line: str, at: int) -> int:
    """Where an item's mark at `at` ends, with its space; 0 if there is none."""
    end = at
    if line[at] in "-*+":
        end += 1
    else:
        while line[end : end + 1].isdigit():
            end += 1
        if end == at or line[end : end + 1] not in (".", ")"):
            return 0
        end += 1
    return end + 1 if line[end : end + 1] in (" ", "\t") else 0


def _with_space(line: str) -> str:
    """`##任务` → `## 任务`: what students mean by it, and most pages show."""
    marks = len(line) - len(line.lstrip("#"))
    following = line[marks : marks + 1]
    is_heading = 0 < marks <= 6 and following and following not in " \t!#" and (marks > 1 or has_cjk(following))
    return f"{line[:marks]} {line[marks:]}" if is_heading else line
