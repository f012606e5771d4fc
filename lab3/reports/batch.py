"""Grades many reports, each in a worker that may die or hang: results are kept as they come, and a second run goes on.

A result is graded anew only when its report, one of its pictures or the rubric changed, or when the machine was in the
way. What people decided lies in files of its own, which no run of this writes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lab3.errors import UsageError
from lab3.places import make_folder
from lab3.progress import Progress, silent
from lab3.reports.export import LIKENESSES, RESERVED, Settled, settled, write_outputs
from lab3.reports.model import GradedReport, Likeness
from lab3.reports.ocr_model import use_threads
from lab3.reports.overrides import load_overrides
from lab3.reports.page import write_report_page
from lab3.reports.page_pictures import preview_of
from lab3.reports.page_words import Language
from lab3.reports.pool import Bounds, Done, run_all
from lab3.reports.provenance import ReportPrint, likenesses
from lab3.reports.provenance_tutorial import read_tutorial
from lab3.reports.spread import grade_few
from lab3.reports.store import (
    REPORT,
    RESULT,
    load_likenesses,
    load_report,
    load_result,
    save_likenesses,
    save_result,
)
from lab3.reports.work import PRINTS, Plan, Task, Worked, grade_one, rubric_key, ungraded

_MOST_WORKERS = 8  # each has OCR's models in its memory, 600 to 800 MiB


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What grading reports came to, in the order of their names. Their readings lie in the results."""

    reports: tuple[Settled, ...]
    likenesses: tuple[Likeness, ...]
    out: Path

    @property
    def exit_code(self) -> int:
        """3 the machine was in the way of some, 1 a check failed, 0 none did."""
        if any(each.status in ("infra_error", "timeout") for each in self.reports):
            return 3
        return int(any(verdict.status == "fail" for each in self.reports for verdict in each.verdicts))


@dataclass
class _Counted:
    """How far a run is."""

    total: int
    kept: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def grade_reports(
    paths: Sequence[Path],
    out: Path,
    *,
    workers: int | None = None,
    fetch: bool = False,
    checks: Sequence[str] = (),
    tutorials: Sequence[Path] = (),
    language: Language = "en",
    bounds: Bounds | None = None,
    plan: Plan | None = None,
    progress: Progress = silent,
    told: Callable[[str], None] = lambda _: None,
    readings: bool = True,
) -> list[GradedReport]:
    """The reports' results, in the order of their names, with what a batch found alike. Each `path` is a file, or a
    folder that holds a report. Without `readings` they are left out: they lie in `out`, and a large batch has many.

    `told` hears the name of each report as it is done. Raises UsageError for paths that are none, and for an `out` that
    cannot be written.
    """
    batch = grade_batch(
        paths,
        out,
        workers=workers,
        plan=plan or make_plan(checks=checks, fetch=fetch, tutorials=tutorials),
        language=language,
        bounds=bounds,
        progress=progress,
        told=told,
    )
    return [_with_likenesses(each, batch, readings) for each in batch.reports]


def make_plan(*, checks: Sequence[str] = (), fetch: bool = False, tutorials: Sequence[Path] = ()) -> Plan:
    """What reports are graded with. Raises UsageError for tutorials that cannot be read."""
    return Plan(checks=tuple(checks), fetch=fetch, tutorials=tuple(read_tutorial(path) for path in tutorials))


def grade_batch(
    paths: Sequence[Path],
    out: Path,
    *,
    plan: Plan,
    workers: int | None = None,
    language: Language = "en",
    bounds: Bounds | None = None,
    progress: Progress = silent,
    told: Callable[[str], None] = lambda _: None,
) -> Batch:
    """Grade the reports into `out`, a folder for each, and write what the batch comes to."""
    tasks = [Task(path=path, name=name, folder=out / name) for name, path in names_of(paths).items()]
    make_folder(out)
    for task in tasks:
        load_overrides(task.folder, name=task.name)  # a broken file is said before hours of work, not after
    count = _Counted(total=len(tasks))
    workers = workers or workers_here()
    for done in _graded(tasks, plan, workers, bounds):
        _take(done, plan, count, progress)
        told(done.job.name)
    if count.kept:
        progress(f"{count.kept} of {count.total} were graded already")
    return write_batch([task.name for task in tasks], out, plan=plan, language=language, progress=progress)


def write_batch(
    names: Sequence[str],
    out: Path,
    *,
    plan: Plan | None = None,
    pages: Collection[str] | None = None,
    language: Language = "en",
    progress: Progress = silent,
) -> Batch:
    """Write a batch's pages, tables and summaries from what lies in `out`, with what people decided.

    Without a plan the likenesses are those that were found when it was graded. `pages`: those alone are written anew,
    None all. One report is in memory at a time.
    """
    alike = load_likenesses(out / LIKENESSES)
    if plan is not None:
        preview = partial(preview_of, out)
        alike = likenesses(dict(_prints(names, out)), tutorials=plan.tutorials, file_of=preview)
        save_likenesses(alike, out / LIKENESSES)
    reports = []
    for number, name in enumerate(sorted(names), start=1):
        shown = pages is None or name in pages
        if (each := _settled(name, out, alike, language if shown else None)) is not None:
            reports.append(each)
        progress("pages", done=number, total=len(names))
    write_outputs(reports, out, likenesses=alike, language=language)
    return Batch(reports=tuple(reports), likenesses=alike, out=out)


def graded_names(out: Path) -> list[str]:
    """The reports whose results lie in `out`. Raises UsageError if there are none."""
    found = sorted(path.parent.name for path in out.glob(f"*/{RESULT}"))
    if not found:
        raise UsageError(
            f"{out} holds no results of reports", todo="grade some: lab3 grade-reports REPORT... --out RESULTS"
        )
    return found


def of_report(alike: Sequence[Likeness], name: str) -> tuple[Likeness, ...]:
    """Those that a report has a part in."""
    return tuple(each for each in alike if name in (each.one, each.other))


def workers_here() -> int:
    """How many reports are read at a time on this machine."""
    return min(_cores(), _MOST_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _graded(tasks: Sequence[Task], plan: Plan, workers: int, bounds: Bounds | None) -> Iterator[Done[Task, Worked]]:
    rubric = rubric_key(plan)
    if len(tasks) < workers:
        return grade_few(tasks, plan=plan, rubric=rubric, workers=workers, cores=_cores(), bounds=bounds)
    work = partial(_grade, plan=plan, rubric=rubric, threads=_cores() // max(1, workers))
    return run_all(tasks, work, workers=workers, bounds=bounds)


def _grade(task: Task, *, plan: Plan, rubric: str, threads: int) -> Worked:
    """In a worker, which reads pictures with so many threads: more than there are cores wait for each other busily."""
    use_threads(threads)
    return grade_one(task, plan, rubric)


def names_of(paths: Sequence[Path]) -> Mapping[str, Path]:
    """A name for each report: its folder's, or its file's, with the folder before it where two are called the same."""
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} is not there", todo="name reports, or folders that hold one each")
    plain = [_plain_name(path) for path in paths]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    names: dict[str, Path] = {}
    for path, name in zip(paths, plain, strict=True):
        whole = f"{_safe(path.resolve().parent.name)}-{name}" if name in twice else name
        if whole in names or whole in RESERVED:
            raise UsageError(
                f"{path} and {names.get(whole, 'a result of the batch')} have the same name, {whole!r}",
                why="results are kept by the report's name",
                todo="rename one of them, or name the folders in place of the files",
            )
        names[whole] = path
    return names


def _plain_name(path: Path) -> str:
    whole = path.resolve()
    return _safe(whole.name if path.is_dir() else whole.stem)


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).strip(".")[:150] or "report"


def _take(done: Done[Task, Worked], plan: Plan, count: _Counted, progress: Progress) -> None:
    count.done += 1
    if done.result is not None:
        count.kept += done.result.kept
    else:
        why = f"lab3 failed: {done.why}" if done.outcome == "failed" else done.why
        graded = ungraded(done.job, plan, "timeout" if done.outcome == "timeout" else "infra_error", why)
        save_result(graded, done.job.folder / RESULT)
        count.failed[done.job.name] = why
    progress("grading", done=count.done, total=count.total)


def _settled(name: str, out: Path, alike: Sequence[Likeness], language: Language | None) -> Settled | None:
    """The report with what people decided; its page is written in this language."""
    folder = out / name
    graded = load_result(folder / RESULT, readings=language is not None)
    if graded is None:
        return None
    overrides, trouble = {}, ""
    try:
        overrides = dict(load_overrides(folder, name=name))
    except UsageError as error:
        trouble = str(error.what)
    if language is not None:
        own = of_report(alike, name)
        report = load_report(folder / REPORT)
        write_report_page(graded, report, folder, overrides=overrides, likenesses=own, language=language)
    return settled(replace(graded, readings=()), overrides, trouble=trouble)


def _prints(names: Sequence[str], out: Path) -> Iterator[tuple[str, ReportPrint]]:
    for name in names:
        try:
            yield name, ReportPrint.from_dict(json.loads((out / name / PRINTS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue


def _with_likenesses(each: Settled, batch: Batch, readings: bool) -> GradedReport:
    name = each.graded.name
    whole = load_result(batch.out / name / RESULT) if readings else None
    return replace(whole or each.graded, likenesses=of_report(batch.likenesses, name))
