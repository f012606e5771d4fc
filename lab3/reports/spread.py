"""A few reports on more workers than that: their pictures are handed out too, each to a worker, and then all is judged.

A report is looked at, its pictures are read side by side, and it is graded with what they say. A picture that ends or
holds its worker is told of its report, as if the report's own worker had read it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from lab3.reports.model import Picture
from lab3.reports.ocr_model import use_threads
from lab3.reports.pool import Bounds, Done, run_all
from lab3.reports.work import (
    Looked,
    PictureRead,
    Plan,
    Task,
    Worked,
    grade_looked,
    look_at,
    pictures_to_read,
    read_picture,
)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A part of a report's grading: to read a picture of it, to judge what was read, or else to look at it first."""

    task: Task
    threads: int = 1
    picture: Picture | None = None
    looked: Looked | None = None
    seen: Mapping[str, PictureRead] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A report that was looked at, and its pictures that are to be read."""

    looked: Looked
    pictures: tuple[Picture, ...]


_Told = _Found | PictureRead | Worked


@dataclass
class _Open:
    """A report that is not graded yet."""

    task: Task
    found: _Found | None = None  # None: nobody looked yet
    seen: dict[str, PictureRead] = field(default_factory=dict)
    began: float | None = None  # when the first of its pictures was handed out


def grade_few(
    tasks: Sequence[Task], *, plan: Plan, rubric: str, workers: int, cores: int, bounds: Bounds | None = None
) -> Iterator[Done[Task, Worked]]:
    """Grade the reports, and yield each as it ends: the same results as `run_all` with `grade_one`, sooner."""
    limit = bounds or Bounds()
    left = {task.name: _Open(task) for task in tasks}
    jobs = deque(_Job(task=task) for task in tasks)
    threads = 0  # of each worker; 0: not all were looked at
    with closing(run_all(jobs, partial(_do, plan=plan, rubric=rubric), workers=workers, bounds=limit)) as running:
        for done in running:
            if (report := left.get(done.job.task.name)) is None:
                continue  # it ended at another of its pictures
            if ended := _taken(done, report, limit):
                del left[ended.job.name]
                _drop(ended.job, jobs)
                yield ended
            elif threads and report.found and len(report.seen) == len(report.found.pictures):
                jobs.appendleft(_Job(task=report.task, threads=threads, looked=report.found.looked, seen=report.seen))
            if not threads and all(each.found for each in left.values()):
                count = sum(len(each.found.pictures) for each in left.values() if each.found)
                threads = max(1, cores // max(1, min(workers, count)))
                for each in left.values():
                    jobs.extend(_handed_out(each, threads, alone=count < 2))


def _handed_out(report: _Open, threads: int, *, alone: bool) -> Iterator[_Job]:
    """A report's pictures, or itself where there is nothing to share."""
    if report.found is None:
        return
    if alone or not report.found.pictures:
        yield _Job(task=report.task, threads=threads, looked=report.found.looked)
    else:
        yield from (_Job(task=report.task, threads=threads, picture=each) for each in report.found.pictures)


def _taken(done: Done[_Job, _Told], report: _Open, limit: Bounds) -> Done[Task, Worked] | None:
    """What became of the report, if that is known by now."""
    job = done.job
    match done.result:
        case Worked() as worked:
            return Done(job.task, "done", worked)
        case PictureRead() as read if job.picture is not None:
            report.seen[job.picture.digest] = read
            began = time.monotonic() - read.seconds
            report.began = began if report.began is None else min(began, report.began)
            more = report.found is None or len(report.seen) < len(report.found.pictures)
            late = more and time.monotonic() - report.began > limit.wall_s
            return Done(job.task, "timeout", why=f"it took longer than {limit.wall_s:g} s") if late else None
        case _Found() as found:
            report.found = found
            return None
        case _:
            return Done(job.task, done.outcome, why=done.why)


def _drop(task: Task, jobs: deque[_Job]) -> None:
    """What waits of a report that ended is not done."""
    others = [job for job in jobs if job.task.name != task.name]
    jobs.clear()
    jobs.extend(others)


def _do(job: _Job, *, plan: Plan, rubric: str) -> _Told:
    """In a worker."""
    use_threads(job.threads)
    if job.picture is not None:
        return read_picture(job.picture, plan)
    if job.looked is not None:
        return grade_looked(job.looked, job.task, plan, seen=job.seen)
    looked = look_at(job.task, plan, rubric)
    if isinstance(looked, Worked):
        return looked
    return _Found(looked=looked, pictures=pictures_to_read(looked.report, plan))
