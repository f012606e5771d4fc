"""One report from its file to its result: read, look at its pictures, judge. It is what a batch's workers do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lab3.errors import InfraError, UsageError
from lab3.report.json_report import write_report
from lab3.reports.model import (
    CodeSeen,
    CommandSeen,
    CompletionSeen,
    FolderSize,
    GradedReport,
    Judged,
    MemoryReading,
    Picture,
    Reading,
    Recognised,
    Report,
)
from lab3.reports.page_pictures import save_previews
from lab3.reports.provenance import fingerprint
from lab3.reports.provenance_tutorial import Tutorial, tutorial_blocks
from lab3.reports.store import REPORT, RESULT, load_result, plain, save_report, save_result

PRINTS = "prints.json"
_READ_AS_TEXT = ("code", "output", "quote", "table")
# Modules that decide over no verdict; all others of lab3.reports do.
_OUTSIDE = frozenset({"batch", "command", "export", "overrides", "pool", "spread", "store"})
_OUTSIDE_TOO = "page"  # the beginning of more such names
_TUTORIALS = "it stands in the tutorial, figure for figure"
_BESIDE = ("grading", "vram_predict", "vram_constants", "quantize", "internlm2_tokenizer")
_LIBRARIES = (
    "lmdeploy",
    "rapidocr",
    "onnxruntime",
    "mammoth",
    "pypdfium2",
    "beautifulsoup4",
    "lxml",
    "markdown-it-py",
    "pillow",
)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What a report goes through. Tests put stand-ins here; they are named so that another process can import them."""

    read: Callable[..., Report]
    recognise: Callable[..., Recognised]
    read_screen: Callable[..., tuple[Reading, ...]]
    read_text: Callable[..., tuple[Reading, ...]]
    commands: Callable[[Report], tuple[CommandSeen, ...]]
    judge: Callable[[Report, tuple[Reading, ...], frozenset[int]], tuple[Judged, ...]]
    not_judged: Callable[[str], tuple[Judged, ...]]  # every check as unknown, and why
    needs_pictures: Callable[[Sequence[str]], bool]  # whether the checks that begin so are found by what pictures say


@dataclass(frozen=True, kw_only=True)
class Task:
    """A report to grade."""

    path: Path
    name: str
    folder: Path  # of its results


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What reports are graded with."""

    checks: tuple[str, ...] = ()  # beginnings of ids; none: all
    fetch: bool = False
    tutorials: tuple[Tutorial, ...] = ()
    steps: Steps | None = None  # None: lab3's own


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What a worker tells of a report; the rest lies in its folder."""

    name: str
    kept: bool  # it was graded before, from the same report, pictures and rubric


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A report that was read and is to be graded."""

    report: Report
    key: str
    times: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PictureRead:
    """What a picture says, or why it cannot be read; and how long that took."""

    found: Recognised | str
    seconds: float


@dataclass
class _Clock:
    times: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.times[what] = round(self.times.get(what, 0.0) + time.monotonic() - began, 3)


def grade_one(task: Task, plan: Plan, rubric: str) -> Worked:
    """Grade a report into its folder, unless that was done. Raises InfraError where the machine is in the way."""
    looked = look_at(task, plan, rubric)
    return looked if isinstance(looked, Worked) else grade_looked(looked, task, plan)


def look_at(task: Task, plan: Plan, rubric: str) -> Looked | Worked:
    """Read a report. One that cannot be read, or that was graded already, is done with that."""
    clock = _Clock()
    steps = plan.steps or own_steps()
    try:
        with clock.of("read"):
            report = steps.read(task.path, fetch=plan.fetch)
    except UsageError as error:
        why = f"the report cannot be read: {error.what}"
        graded = _unread(task, plan, why)
        save_result(graded, task.folder / RESULT)
        return Worked(name=task.name, kept=False)
    key = report_key(report, rubric)
    known = load_result(task.folder / RESULT, readings=False)
    if known and known.key == key and known.status in ("graded", "needs_review"):
        return Worked(name=task.name, kept=True)
    return Looked(report=report, key=key, times=clock.times)


def grade_looked(looked: Looked, task: Task, plan: Plan, *, seen: Mapping[str, PictureRead] | None = None) -> Worked:
    """Grade a report that was read. `seen` has what pictures say, by their digest, that need not be read again."""
    report, steps = looked.report, plan.steps or own_steps()
    clock = _Clock(dict(looked.times))
    graded, recognised = judge_one(report, task, plan, steps, key=looked.key, clock=clock, seen=seen)
    task.folder.mkdir(parents=True, exist_ok=True)
    save_report(report, task.folder / REPORT)
    write_report(plain(fingerprint(report, recognised, graded.readings).to_dict()), task.folder / PRINTS)
    save_previews(report.pictures, task.folder)
    save_result(graded, task.folder / RESULT)  # the last: what it needs is there
    return Worked(name=task.name, kept=False)


def pictures_to_read(report: Report, plan: Plan) -> tuple[Picture, ...]:
    """The pictures that grading a report reads, each once, the largest files first: who shares them ends sooner so."""
    if not (plan.steps or own_steps()).needs_pictures(plan.checks):
        return ()
    found = {each.digest: (each.path.stat().st_size, each) for each in report.pictures if each.path and each.digest}
    return tuple(each for _, each in sorted(found.values(), key=lambda sized: -sized[0]))


def read_picture(picture: Picture, plan: Plan) -> PictureRead:
    """Read one of them. Raises InfraError where the machine is in the way."""
    return _picture_read(picture, plan.steps or own_steps())


def judge_one(
    report: Report,
    task: Task,
    plan: Plan,
    steps: Steps,
    *,
    key: str = "",
    clock: _Clock | None = None,
    seen: Mapping[str, PictureRead] | None = None,
) -> tuple[GradedReport, Mapping[str, Recognised]]:
    """The result of a report that was read, and the text of its pictures by their digest: none where no check that is
    asked for needs it."""
    clock = clock or _Clock()
    read = _pictures_read(report, steps, seen or {}) if steps.needs_pictures(plan.checks) else {}
    recognised = {digest: each.found for digest, each in read.items() if isinstance(each.found, Recognised)}
    clock.times["pictures"] = round(sum(each.seconds for each in read.values()), 3)
    with clock.of("readings"):
        theirs = tutorial_blocks(report, plan.tutorials)
        readings = tuple(_readings(report, recognised, steps, theirs))
    with clock.of("judging"):
        judged = chosen(steps.judge(report, readings, theirs), plan.checks)
    asked = tuple(dict.fromkeys(each.review for each in judged if each.review))
    graded = GradedReport(
        name=task.name,
        path=str(task.path),
        key=key,
        judged=judged,
        readings=readings,
        problems=(*report.problems, *_unreadable(report, read)),
        times=clock.times,
        status="needs_review" if asked else "graded",
        reasons=asked,
    )
    return graded, recognised


def ungraded(task: Task, plan: Plan, status: Literal["infra_error", "timeout"], why: str) -> GradedReport:
    """The result where the machine was in the way: nothing is judged, and the next run tries again."""
    return replace(_unread(task, plan, why), status=status)


def chosen(judged: Sequence[Judged], checks: Sequence[str]) -> tuple[Judged, ...]:
    """Those verdicts whose ids begin so; all, if nothing is asked for."""
    return tuple(each for each in judged if not checks or each.id.startswith(tuple(checks)))


def report_key(report: Report, rubric: str) -> str:
    """What decides over a result: the report as it was read, its pictures by their content, and the rubric."""
    blocks = [
        (each.kind, each.text, each.line, each.level, each.language, each.rows, each.section, _named(each.picture))
        for each in report.blocks
    ]
    told = json.dumps(plain([rubric, report.format, report.encoding, blocks, report.problems]))
    return hashlib.sha256(told.encode()).hexdigest()


def rubric_key(plan: Plan) -> str:
    """The code behind the verdicts, the libraries that read, and what a batch was asked for."""
    lab3 = Path(__file__).parents[1]
    code = {str(path.relative_to(lab3)): _digest(path) for path in code_files()}
    libraries = {name: _version(name) for name in _LIBRARIES}
    asked: dict[str, Any] = {"checks": plan.checks, "fetch": plan.fetch}
    asked["tutorials"] = [each.digest for each in plan.tutorials]
    return hashlib.sha256(json.dumps([code, libraries, asked], sort_keys=True).encode()).hexdigest()


def code_files() -> tuple[Path, ...]:
    """The code behind the verdicts."""
    here = Path(__file__).parent
    own = [path for path in here.glob("*.py") if path.stem not in _OUTSIDE]
    files = [path for path in own if not path.stem.startswith(_OUTSIDE_TOO)]
    for name in _BESIDE:
        beside = here.parent / name
        files += beside.glob("*.py") if beside.is_dir() else [beside.with_suffix(".py")]
    return tuple(sorted(path for path in files if path.is_file()))


def own_steps() -> Steps:
    """lab3's own: nothing of them is imported before a report is graded."""
    from lab3.reports.commands import commands_in
    from lab3.reports.ocr import recognise
    from lab3.reports.reading import read_report
    from lab3.reports.screens import read_screen, read_text
    from lab3.reports.work_judging import judge, needs_pictures, not_judged

    return Steps(
        read=read_report,
        recognise=recognise,
        read_screen=read_screen,
        read_text=read_text,
        commands=commands_in,
        judge=judge,
        not_judged=not_judged,
        needs_pictures=needs_pictures,
    )


def _unread(task: Task, plan: Plan, why: str) -> GradedReport:
    from lab3.reports.work_judging import not_judged

    judged = chosen(plan.steps.not_judged(why) if plan.steps else not_judged(why), plan.checks)
    return GradedReport(
        name=task.name, path=str(task.path), key="", judged=judged, status="needs_review", reasons=(why,)
    )


def _pictures_read(report: Report, steps: Steps, seen: Mapping[str, PictureRead]) -> dict[str, PictureRead]:
    """What the pictures say that are at hand, by their digest."""
    read: dict[str, PictureRead] = {}
    for picture in report.pictures:
        if picture.path is not None and picture.digest and picture.digest not in read:
            read[picture.digest] = seen.get(picture.digest) or _picture_read(picture, steps)
    return read


def _picture_read(picture: Picture, steps: Steps) -> PictureRead:
    """A picture that a library chokes on is that picture's problem; a library that is not there is the machine's."""
    if picture.path is None:
        raise ValueError("a picture that is not at hand")
    began = time.monotonic()
    found: Recognised | str
    try:
        found = steps.recognise(picture.path, digest=picture.digest)
    except (InfraError, ImportError, MemoryError):
        raise
    except Exception as error:
        found = str(error) or type(error).__name__
    return PictureRead(found=found, seconds=time.monotonic() - began)


def _unreadable(report: Report, read: Mapping[str, PictureRead]) -> Iterator[str]:
    """The pictures that cannot be read, and why."""
    for picture in report.pictures:
        if (known := read.get(picture.digest)) is not None and isinstance(known.found, str):
            yield f"the picture {picture.target[:200]} cannot be read: {known.found}"


def _readings(
    report: Report, seen: Mapping[str, Recognised], steps: Steps, theirs: frozenset[int]
) -> Iterator[Reading]:
    """All that is read off a report, in its order.

    A command that stands in a fence is found by two readers: `commands` knows where it begins and ends.
    """
    commands: dict[int, list[CommandSeen]] = {}
    for command in steps.commands(report):
        commands.setdefault(command.place.block, []).append(command)
    for number, block in enumerate(report.blocks):
        known = commands.get(number, [])
        yield from known
        if block.picture is not None and block.picture.digest in seen:
            found = steps.read_screen(seen[block.picture.digest], block=number)
        elif block.kind in _READ_AS_TEXT and block.text.strip():
            found = steps.read_text(block.text, block=number, line=block.line)
        else:
            continue
        told = {command.argv for command in known}
        for reading in found:
            if isinstance(reading, CommandSeen) and reading.argv in told:
                continue
            if number not in theirs:
                yield reading
            else:
                yield from _of_tutorial(reading)


def _of_tutorial(reading: Reading) -> Iterator[Reading]:
    """What counts of a reading in a block of the tutorial's: what one types. A figure is doubted, not passed over:
    somebody whose screen shows the same figures is to be looked at by a person, not told that they show nothing."""
    if isinstance(reading, CommandSeen | CodeSeen):
        yield reading
    elif isinstance(reading, MemoryReading | FolderSize | CompletionSeen):
        yield replace(reading, doubt=reading.doubt or _TUTORIALS)


def _named(picture: Picture | None) -> list[str] | None:
    return None if picture is None else [picture.target, picture.alt, picture.digest, picture.why]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
