"""The blocks of the pages: commands with what they print, and code, each with the line that it stands on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
SHELL = ("console", "bash", "sh")
# What is shown and not typed. A fence of any other language, or of none, is an error.
SHOWN = ("text", "json", "toml", "ini", "yaml", "{toctree}", "{eval-rst}", "{include}", "{note}", "{warning}", "{math}")


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page. `line` counts from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """What is typed at a prompt, without its comment, and the lines shown after it ("" if none are)."""

    page: str
    line: int
    text: str
    output: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README.md, README.zh.md and every page below docs, as paths from the root."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    return [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", ROOT / "README.zh.md", *found)]


def fences(page: str, text: str | None = None) -> list[Fence]:
    """The page's fenced blocks, in their order; those within lists and quotations, too."""
    return [*_fences(page, (ROOT / page).read_text(encoding="utf-8") if text is None else text)]


@cache
def _fences(page: str, text: str) -> tuple[Fence, ...]:
    return tuple(
        Fence(page, (token.map or [0])[0] + 1, token.info.split(" ")[0], token.content)
        for token in MarkdownIt("commonmark").enable("table").parse(text)
        if token.type == "fence"
    )


def commands(page: str, text: str | None = None) -> list[Command]:
    """What the page tells to type into a shell, in its order."""
    return [command for fence in fences(page, text) if fence.language in SHELL for command in _typed(fence)]


def python_blocks(page: str) -> list[Fence]:
    return [fence for fence in fences(page) if fence.language == "python"]


def _typed(fence: Fence) -> Iterator[Command]:
    prompt = fence.language == "console"
    lines = fence.text.splitlines()
    starts = [n for n, line in enumerate(lines) if (line.startswith("$ ") if prompt else line.strip())]
    if not prompt:  # a script has no output, and a line that goes on begins no command
        starts = [n for n in starts if n == 0 or not lines[n - 1].endswith("\\")]
        starts = [n for n in starts if not lines[n].lstrip().startswith("#")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\") and last + 1 < end:
            last += 1
        typed = "\n".join(lines[start : last + 1]).removeprefix("$ ")
        shown = "\n".join(lines[last + 1 : end]).strip("\n") if prompt else ""
        yield Command(fence.page, fence.line + 1 + start, without_comment(typed), shown)


def without_comment(typed: str) -> str:
    """On one line, and without the comment at its end; a `#` in quotes or in a word begins none."""
    joined = re.sub(r"\\\n\s*", "", typed)
    quoted = re.sub(r"'[^']*'|\"[^\"]*\"", lambda match: "x" * len(match[0]), joined)
    comment = re.search(r"(?:^|\s)#", quoted)
    return (joined[: comment.start()] if comment else joined).strip()


def alike(shown: str, printed: str) -> bool:
    """Whether the output is what the page shows, where a `…` there stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in shown.rstrip().split("…"))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None
