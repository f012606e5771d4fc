"""Workers for hostile input: each job in a process that may die or hang, and the others go on.

`concurrent.futures` gives up its whole pool when one worker dies, and knows no time limit for a job; here the job that
did it is told, and its worker replaced.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import psutil

from lab3.garbage import collect_rarely
from lab3.serve_guard import die_with_parent

J = TypeVar("J")
R = TypeVar("R")

JOBS_OF_A_WORKER = 25  # then it is replaced: whatever a library leaks goes with it
_WATCH_S = 0.5  # how often a worker's memory is looked at
_END_S = 5.0


@dataclass(frozen=True)
class Done(Generic[J, R]):
    """What became of a job: its result, or in one sentence why there is none."""

    job: J
    outcome: Literal["done", "failed", "died", "timeout", "memory"]
    result: R | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a job may take."""

    wall_s: float = 300.0
    memory_mib: int = 4096  # resident, of its process


def run_all(
    jobs: Iterable[J], work: Callable[[J], R], *, workers: int, bounds: Bounds | None = None
) -> Generator[Done[J, R], None, None]:
    """Do all jobs, at most `workers` at a time, and yield each as it ends. `work` and the jobs must be picklable.

    Nothing that a job does ends the others. Leaving the iterator ends the workers. A deque of jobs is emptied as it is:
    who hears what became of one may put others there.
    """
    waiting = jobs if isinstance(jobs, deque) else deque(jobs)
    crew: list[_Worker[J, R]] = []
    try:
        while waiting or any(worker.job is not None for worker in crew):
            _hand_out(waiting, crew, work, workers)
            yield from _ended(crew, bounds or Bounds())
    finally:
        for worker in crew:
            worker.end()


@dataclass(eq=False)
class _Worker(Generic[J, R]):
    """A process that does one job after another."""

    process: BaseProcess
    pipe: Connection
    job: J | None = None
    began: float = 0.0
    jobs_done: int = 0

    def give(self, job: J) -> None:
        self.job, self.began = job, time.monotonic()
        self.pipe.send(job)

    def end(self) -> None:
        self.pipe.close()
        if self.job is not None:
            self.process.kill()
        self.process.join(_END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _hand_out(waiting: deque[J], crew: list[_Worker[J, R]], work: Callable[[J], R], workers: int) -> None:
    for worker in [each for each in crew if each.job is None]:
        if worker.jobs_done >= JOBS_OF_A_WORKER:
            crew.remove(worker)
            worker.end()
        elif waiting:
            _give(worker, waiting, crew)
    while waiting and len(crew) < workers:
        crew.append(worker := _started(work))
        _give(worker, waiting, crew)


def _give(worker: _Worker[J, R], waiting: deque[J], crew: list[_Worker[J, R]]) -> None:
    job = waiting.popleft()
    try:
        worker.give(job)
    except OSError:  # it went while it had nothing to do: the job is another's
        waiting.appendleft(job)
        worker.job = None
        crew.remove(worker)
        worker.end()


def _started(work: Callable[[J], R]) -> _Worker[J, R]:
    # "spawn": a fork of a process with threads may hang, and would share this one's memory.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), name="lab3-report", daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _ended(crew: list[_Worker[J, R]], bounds: Bounds) -> Iterator[Done[J, R]]:
    busy: dict[Any, _Worker[J, R]] = {worker.pipe: worker for worker in crew if worker.job is not None}
    for pipe in wait(list(busy), timeout=_WATCH_S):
        worker = busy.pop(pipe)
        job: Any = worker.job
        worker.job = None
        try:
            outcome, found = worker.pipe.recv()
        except Exception as error:  # it is gone, or what it sends is nonsense
            crew.remove(worker)
            why = f"the process that read it ended ({_end_code(worker)}; {type(error).__name__})"
            worker.end()
            yield Done(job, "died", why=why)
            continue
        worker.jobs_done += 1
        yield Done(job, "done", found) if outcome == "done" else Done(job, "failed", why=str(found))
    for worker in busy.values():
        if over := _over(worker, bounds):
            crew.remove(worker)
            job = worker.job
            worker.end()
            yield Done(job, over[0], why=over[1])


def _end_code(worker: _Worker[J, R]) -> str:
    worker.process.join(_END_S)
    code = worker.process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _over(worker: _Worker[J, R], bounds: Bounds) -> tuple[Literal["timeout", "memory"], str] | None:
    if time.monotonic() - worker.began > bounds.wall_s:
        return "timeout", f"it took longer than {bounds.wall_s:g} s"
    try:
        held = psutil.Process(worker.process.pid).memory_info().rss >> 20
    except psutil.Error:
        return None
    return ("memory", f"it took more than {bounds.memory_mib} MiB") if held > bounds.memory_mib else None


def _where(error: BaseException) -> str:
    """The line that raised it, for whoever has to mend it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _serve(pipe: Connection, work: Callable[[J], R]) -> None:
    """A worker's life, until its pipe is closed: by who started it, or with it. A job that hangs ends with it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    collect_rarely()
    if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
        return
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[str, Any] = ("done", work(job))
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}{_where(error)}")
        try:
            pipe.send(answer)
        except OSError:
            return
