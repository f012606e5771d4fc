"""Stand-ins for the parts of lab3.reports, so that a batch is tested without OCR and the rubric.

A report is a text of which each line is a block: `# heading`, `![](picture.png)`, `$ command`, `DIE` ends the process,
`HANG` waits, `GROW` takes memory, `BREAK` and `MISSING` raise, and anything else is prose. What a picture says lies in
its folder as picture.png.txt, where the same words do the same, `SLOW ` takes a second, and `THREADS` is how many it
would be read with. Whoever reads it adds their process id to picture.png.read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lab3.errors import UsageError
from lab3.reports import ocr_model
from lab3.reports.model import (
    Block,
    CommandSeen,
    Judged,
    MemoryReading,
    Picture,
    Place,
    Reading,
    Recognised,
    Report,
    TextLine,
)
from lab3.reports.work import Steps

TITLES = {"report.memory": "Memory is shown", "report.text": "The text is right"}


def read(path: Path, *, fetch: bool = False) -> Report:
    found = path / "report.md" if path.is_dir() else path
    if not found.is_file():
        raise UsageError(f"{path} holds no report")
    section: tuple[str, ...] = ()
    blocks = []
    for number, line in enumerate(found.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("#"):
            section = (line.strip("# "),)
        if line:
            blocks.append(_block(line, number, found.parent, section))
    return Report(path=found, format="markdown", encoding="utf-8", blocks=tuple(blocks))


def recognise(path: Path, *, digest: str) -> Recognised:
    with path.with_name(f"{path.name}.read").open("a") as file:
        file.write(f"{os.getpid()}\n")
    said = path.with_name(f"{path.name}.txt")
    text = said.read_text(encoding="utf-8") if said.is_file() else ""
    _obey(text)
    if text == "BROKEN":
        raise ValueError("a library choked on it")
    if text.startswith("SLOW "):
        time.sleep(1)
        text = text.removeprefix("SLOW ")
    text = text.replace("THREADS", str(ocr_model.threads))
    lines = tuple(TextLine(line, (10, 10, 110, 30), 0.9) for line in text.splitlines())
    return Recognised(digest=digest, width=200, height=100, lines=lines)


def read_screen(seen: Recognised, *, block: int) -> tuple[Reading, ...]:
    found = []
    for line in seen.lines:
        used, _, total = line.text.partition("/")
        if used.isdigit() and total.isdigit():
            place = Place(block=block, quote=line.text, picture=seen.digest, box=line.box, confidence=line.confidence)
            found.append(MemoryReading(used_mib=int(used), total_mib=int(total), place=place))
    return tuple(found)


def read_text(text: str, *, block: int, line: int | None) -> tuple[Reading, ...]:
    seen = Recognised(digest="", width=0, height=0, lines=tuple(TextLine(each) for each in text.splitlines()))
    return read_screen(seen, block=block)


def commands(report: Report) -> tuple[CommandSeen, ...]:
    return tuple(
        CommandSeen(text=block.text, argv=tuple(block.text.split()), place=Place(block=number, quote=block.text))
        for number, block in enumerate(report.blocks)
        if block.kind == "code"
    )


def judge(report: Report, readings: tuple[Reading, ...], theirs: frozenset[int]) -> tuple[Judged, ...]:
    for block in report.blocks:
        _obey(block.text)
    memory = [each for each in readings if isinstance(each, MemoryReading)]
    wrong = [
        Place(block=number, quote=block.text)
        for number, block in enumerate(report.blocks)
        if "wrong" in block.text and number not in theirs
    ]
    return (
        judged("report.memory", "pass" if memory else "unknown", [memory[0].place] if memory else []),
        judged("report.text", "fail" if wrong else "pass", wrong or [Place(block=0, quote="")]),
    )


def not_judged(why: str) -> tuple[Judged, ...]:
    return tuple(judged(name, "unknown", [], reason=why) for name in TITLES)


def needs_pictures(checks: Sequence[str]) -> bool:
    return not checks or any("report.memory".startswith(each) for each in checks)


def judged(name, status, places=(), *, reason="", review=None, **more) -> Judged:
    asks = "no memory was read" if status == "unknown" and review is None else review or ""
    return Judged(
        id=name,
        task=1,
        title=TITLES.get(name, name),
        title_zh="检查",
        status=status,
        points=5 if status == "pass" else 0,
        max_points=5,
        reason=reason or f"it is {status}",
        places=tuple(places),
        review=asks,
        **more,
    )


STEPS = Steps(
    read=read,
    recognise=recognise,
    read_screen=read_screen,
    read_text=read_text,
    commands=commands,
    judge=judge,
    not_judged=not_judged,
    needs_pictures=needs_pictures,
)


def _block(line: str, number: int, folder: Path, section: tuple[str, ...]) -> Block:
    if line.startswith("!["):
        target = line.split("(")[1].rstrip(")")
        path = folder / target
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            picture = Picture(target=target, path=path, digest=digest)
        else:
            picture = Picture(target=target, why="it is not in the folder")
        return Block(kind="image", text="", line=number, picture=picture, section=section)
    if line.startswith("#"):
        return Block(kind="heading", text=line.strip("# "), line=number, level=1, section=section)
    if line.startswith("$ "):
        return Block(kind="code", text=line[2:], line=number, section=section)
    return Block(kind="paragraph", text=line, line=number, section=section)


def _obey(text: str) -> None:
    match text:
        case "DIE":
            os._exit(7)
        case "HANG":
            time.sleep(600)
        case "GROW":
            _held = b"x" * (2 << 30)
            time.sleep(600)
        case "BREAK":
            raise ZeroDivisionError("our mistake")
        case "MISSING":
            raise ImportError("no library")
