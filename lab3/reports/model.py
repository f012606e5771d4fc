"""What a report holds, and what is read off it: the records that the parts of lab3.reports hand to each other.

reading → Report (blocks and pictures) → ocr → Recognised (lines with boxes) → screens → readings (numbers, commands,
printed objects, each with its Place) → facts → checks → Judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

BlockKind = Literal["heading", "paragraph", "list_item", "code", "table", "quote", "image", "output"]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the picture as it is stored


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something stands: a block of the report, and a box in its picture if it was read off one."""

    block: int  # index into Report.blocks
    quote: str  # the text as it was read
    line: int | None = None  # of the file, from 1, where it has lines
    picture: str | None = None  # Picture.digest
    box: Box | None = None
    confidence: float = 1.0  # 0 to 1; 1 for what is written as text

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a report. `path` is None where it is not at hand, and `why` says why it is not."""

    target: str  # as the report links it
    alt: str = ""
    path: Path | None = None
    digest: str = ""  # SHA-256 of its bytes; empty where it is not at hand
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of a report, in the order of reading.

    `text` is plain, without markup. `section` has the headings that it stands under, outermost first, and the bold or
    single lines that students use in their place. A block of kind "image" has a `picture`; "output" is what a cell of a
    notebook printed.
    """

    kind: BlockKind
    text: str
    line: int | None = None
    level: int = 0  # of a heading
    language: str = ""  # of code, as the fence says
    rows: tuple[tuple[str, ...], ...] = ()  # of a table
    picture: Picture | None = None
    section: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # the parts of the text that stand in backquotes or <code>


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as it was handed in. `problems` are things that a reader should know, e.g. an unclosed fence."""

    path: Path
    format: Literal["markdown", "notebook", "html", "docx", "pdf", "text"]
    encoding: str
    blocks: tuple[Block, ...]
    problems: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(block.picture for block in self.blocks if block.picture is not None)


# --- what OCR sees ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextLine:
    """A line of text in a picture, or in a block of code: then without a box, and certain."""

    text: str
    box: Box | None = None
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The text of one picture, from the top down; pieces of one row are joined, with spaces as wide as the gaps."""

    digest: str
    width: int
    height: int
    lines: tuple[TextLine, ...]
    pieces: tuple[TextLine, ...] = ()  # as OCR found them, before they were joined


# --- readings: facts with their place ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Memory of a card: a studio bar (`显存 20616 / 24566 MiB 83.92%`), a row of nvidia-smi, nvitop and the like."""

    used_mib: int
    total_mib: int | None
    place: Place
    percent: float | None = None  # as shown beside it
    gpu: int | None = None  # index
    card: str = ""  # "Nvidia A100", as shown
    share_percent: float | None = None  # of a card that is shared: "30% Nvidia A100"
    kind: Literal["studio", "nvidia-smi", "other"] = "other"
    doubt: str = ""  # why it may be misread, e.g. the percentage does not fit; empty where it is sure
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A row of nvidia-smi's table of processes."""

    pid: int | None
    name: str
    used_mib: int
    gpu: int | None
    place: Place


@dataclass(frozen=True, kw_only=True)
class FolderSize:
    """A row of `du -sh`, `ls -lh` and the like. `low` and `high`, in bytes, are what the rounded figure allows."""

    name: str  # the last part of its path, or the path as shown
    text: str  # "1.5G"
    low: int
    high: int
    place: Place
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class CommandSeen:
    """A command typed at a prompt, or standing in a fence or in prose; joined over continued lines."""

    text: str
    argv: tuple[str, ...]
    place: Place
    at_prompt: bool = False  # it was really typed: a prompt stands before it
    folder: str = ""  # where the prompt says it was typed, e.g. "~/model"


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line that a program of the lab prints; `event` says which."""

    event: Literal["listening", "started", "loading", "quantizing", "quantized", "error", "killed", "out_of_memory"]
    place: Place
    port: int | None = None
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolCallSeen:
    name: str
    arguments: str  # JSON, as printed


@dataclass(frozen=True, kw_only=True)
class CompletionSeen:
    """A printed `ChatCompletion(...)`, or the JSON of one. None for what is not shown, or cannot be read."""

    place: Place
    id: str | None = None
    model: str | None = None
    created: int | None = None
    content: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[ToolCallSeen, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    complete: bool = True  # it is seen from its beginning to its end
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A line of a program's output that is nothing of the above, e.g. `8`."""

    text: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class ChatSeen:
    """A turn of a conversation, on a web page or in a terminal. Either part may be missing."""

    prompt: str
    answer: str
    place: Place
    where: Literal["page", "terminal", "code"] = "page"


@dataclass(frozen=True, kw_only=True)
class CodeSeen:
    """Python of the report: a fence, a cell of a notebook, or a picture of an editor."""

    text: str
    place: Place


Reading = (
    MemoryReading | FolderSize | CommandSeen | LogLine | CompletionSeen | Printed | ChatSeen | CodeSeen
)  # fmt: skip


# --- what it comes to -------------------------------------------------------------------------------------------------

Status = Literal["pass", "fail", "unknown"]
# Why it is a fail: not shown; shown, and honestly not working; against itself; against what can be; a wrong claim.
FailKind = Literal["", "missing", "not_achieved", "contradiction", "impossible", "mistaken"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A check's verdict on a report. `places` are what it was read from: a pass has at least one.

    `review` asks a person to look, and says why; the places say where.
    """

    id: str
    task: int  # 1, 2, or 0 for what is about the report as a whole
    title: str
    title_zh: str
    status: Status
    points: int
    max_points: int
    reason: str  # one sentence
    kind: FailKind = ""
    expected: str = ""
    actual: str = ""
    places: tuple[Place, ...] = ()
    review: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Something that two reports share, or that one has from the tutorial. It is no verdict."""

    kind: Literal["same_picture", "like_picture", "same_text", "tutorial_text", "tutorial_picture", "borrowed_url"]
    one: str  # the report
    other: str  # the other report, or where it is from
    what: str  # one sentence
    share: float | None = None  # 0 to 1
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GradedReport:
    """A report's result. `key` changes with the report, its pictures and the rubric."""

    name: str
    path: str
    key: str
    judged: tuple[Judged, ...]
    readings: tuple[Reading, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    problems: tuple[str, ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    status: Literal["graded", "needs_review", "infra_error", "timeout"] = "graded"
    reasons: tuple[str, ...] = ()  # why it is not simply graded
