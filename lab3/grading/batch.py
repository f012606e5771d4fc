"""Grades many submissions: one server for each distinct model and command, many scripts at once against it.

Each result is written as it comes, by one rename; the same command goes on where it was broken off, and grades anew
only what changed: the submission, the rubric or the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from lab3.errors import Lab3Error, UsageError
from lab3.grading.files import list_files
from lab3.grading.grade import RUBRIC, grade, not_graded
from lab3.grading.results import Graded
from lab3.grading.sandbox import check_sandbox
from lab3.grading.subject import LIMITS, Submission
from lab3.hub import Hub, RunningServer, ServerSpec
from lab3.hub_wire import Member, member_of
from lab3.models import resolve
from lab3.nvml import devices
from lab3.places import make_folder
from lab3.progress import Progress, silent
from lab3.quantize_cache import quantize_cached
from lab3.report import write_report
from lab3.serve_flags import Engine
from lab3.verdicts import Check

T = TypeVar("T")
RESULT = "result.json"
WORKERS = {True: 16, False: 3}  # with a GPU or without: scripts at once
_CODE = ("checks", "evidence", "noise", "verdicts", "structure", "funcall", "chat", "grading")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a batch is graded with."""

    model: str = "embedded"  # the source: compared with, and served where nobody hands a model in
    source_known: bool = False  # whether that is what the submissions were quantized from
    engine: Engine | Literal["auto"] = "auto"
    checks: tuple[Check, ...] = RUBRIC
    timeout_s: float = LIMITS.wall_s
    model_roots: tuple[Path, ...] = ()
    workers: int | None = None  # None: by the machine


@dataclass(frozen=True)
class Task:
    """A submission to grade."""

    folder: Path
    name: str
    key: str


class MakeSubject(Protocol):
    """Builds what gathers a submission's evidence, as one member's part in a run."""

    def __call__(self, task: Task, member: Member) -> Submission: ...


@dataclass
class Grader:
    """What grades submissions on one machine. `grade_all` yields results as they come; its servers end with it."""

    plan: Plan
    out: Path
    progress: Progress = silent
    make_subject: MakeSubject | None = None  # None: as `plan` says
    fallback: Callable[[], Path] | None = None  # what is served where no model was handed in; None: as `plan` says
    identities: dict[str, Path] = field(default_factory=dict)  # content of a model → the first folder that has it
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def grade_all(self, tasks: Sequence[Task]) -> Iterator[Graded]:
        """Group after group, each with a server of its own."""
        check_sandbox()
        hub = Hub(folder=self.out / "logs", progress=self.progress)
        with ExitStack() as held:
            held.callback(hub.close)
            for group in self.groups(tasks, hub):
                yield from self._group(group, hub)

    def groups(self, tasks: Sequence[Task], hub: Hub) -> Iterator[list[Task]]:
        """Submissions that can share a server, to be graded together, so that few servers are up at a time."""
        groups: dict[ServerSpec | None, list[Task]] = {}
        with member_of(hub) as member:
            for task in tasks:
                try:
                    spec = self._subject(task, _Own(member)).spec()
                except Exception:  # whatever it is, grading tells it as that submission's
                    spec = None
                groups.setdefault(spec, []).append(task)
        yield from groups.values()

    def _group(self, tasks: Sequence[Task], hub: Hub) -> Iterator[Graded]:
        with (
            member_of(hub) as member,
            ThreadPoolExecutor(scripts_at_once(self.plan), thread_name_prefix="lab3-grade") as pool,
        ):
            for future in as_completed([pool.submit(self.grade_one, task, member) for task in tasks]):
                yield future.result()
                del future  # it would hold the result until the next one comes

    def grade_one(self, task: Task, member: Member) -> Graded:
        """One submission, on the servers of the member's hub. Raises nothing but what ends the whole batch."""
        try:
            subject = self._subject(task, _Own(member))
            return grade(subject, name=task.name, key=task.key, checks=self.plan.checks)
        except Exception as error:  # a mistake of ours with one submission must not stop the others
            why = f"lab3 failed: {type(error).__name__}: {error}"
            return not_graded(task.name, task.key, why, self.plan.checks)

    def _subject(self, task: Task, member: Member) -> Submission:
        if self.make_subject is not None:
            return self.make_subject(task, member)
        return Submission(
            member,
            str(task.folder),
            engine=self.plan.engine,
            source=self.plan.model if self.plan.source_known else None,
            fallback=lambda: member.once("shared fallback", self._fallback),
            seed_name=task.name,
            limits=replace(LIMITS, wall_s=self.plan.timeout_s),
            model_roots=self.plan.model_roots,
            same_model=self._same_model,
            shares_server=True,
            progress=self.progress,
        )

    def _fallback(self) -> Path:
        if self.fallback is not None:
            return self.fallback()
        return quantize_cached(resolve(self.plan.model, progress=self.progress), progress=self.progress).out

    def _same_model(self, folder: Path) -> Path:
        """The first folder with this content, so that equal models are one server's."""
        content = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja", ".model", ".bin", ".txt"):
                content.update(f"{path.name} {_digest(path)} ".encode())
        with self._lock:
            return self.identities.setdefault(content.hexdigest(), folder)


def grade_batch(
    folders: Sequence[Path],
    out: Path,
    *,
    plan: Plan,
    progress: Progress = silent,
    told: Callable[[Graded], None] = lambda _: None,
    grade_all: Callable[[Sequence[Task]], Iterator[Graded]] | None = None,
) -> tuple[Graded, ...]:
    """Grade `folders` into `out`, a folder for each, and write what the whole batch comes to; in the order of names.

    What is returned has no evidence, which is in each result.json: a batch may be larger than memory. `told` hears of
    each result as it comes. `grade_all` grades elsewhere, such as on a cluster. Raises UsageError for folders that are
    none, names that clash and an `out` that cannot be written, InfraError if the sandbox cannot be had.
    """
    from lab3.grading.page import PAGE, write_page

    names = _names(folders)
    make_folder(out)
    rubric = rubric_key(plan)
    tasks, kept = [], []
    for folder, name in zip(folders, names, strict=True):
        key = submission_key(folder, rubric)
        found = _kept(out / name / RESULT, key)
        if found is None:
            tasks.append(Task(folder, name, key))
        else:
            write_page(found, out / name / PAGE)
            kept.append(found.brief())
    if kept:
        progress(f"{len(kept)} of {len(folders)} are graded already")
    graded = list(kept)
    grading = (grade_all or Grader(plan, out, progress).grade_all)(tasks) if tasks else iter(())
    for result in grading:
        write_report(result.to_dict(), out / result.name / RESULT)
        write_page(result, out / result.name / PAGE)
        graded.append(result.brief())
        progress("grading", done=len(graded), total=len(folders))
        told(result)
    graded.sort(key=lambda each: each.name)
    _write_outputs(graded, dict(zip(names, folders, strict=True)), out)
    return tuple(graded)


def submission_key(folder: Path, rubric: str) -> str:
    """What decides over a result: every file of the submission by its content, and the rubric."""
    content = hashlib.sha256(rubric.encode())
    for path in sorted(list_files(folder).files):
        content.update(os.fsencode(path.relative_to(folder)) + b"\0" + _digest(path).encode())
    return content.hexdigest()


def rubric_key(plan: Plan) -> str:
    """The checks, the code behind them, and the model that submissions are measured by."""
    from lab3.embedded import embedded_key

    model = embedded_key() if plan.model == "embedded" else plan.model
    asked = {
        "checks": [(check.id, check.max_points) for check in plan.checks],
        "model": [model, plan.source_known],
        "engine": plan.engine,
        "timeout_s": plan.timeout_s,
        "gpu": [device.name for device in devices()][:1],
    }
    return hashlib.sha256(json.dumps([code_digests(), asked], sort_keys=True).encode()).hexdigest()


def code_digests() -> dict[str, str]:
    """The code that decides over results, file by file."""
    here = Path(__file__).parents[1]
    files = [path for name in _CODE for path in _python(here / name)]
    return {str(path.relative_to(here)): _digest(path) for path in files}


def scripts_at_once(plan: Plan) -> int:
    """How many submissions are graded at a time on this machine."""
    return plan.workers or WORKERS[bool(devices()) and plan.engine != "cpu"]


class _Own(Member):
    """One submission's part in a run: what it makes is its own and goes with it, but for what is named as shared."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._made: dict[str, tuple[Any, Lab3Error | None]] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        if name == "environment" or name.startswith("shared "):
            return self._member.once(name, make)
        if name not in self._made:
            try:
                self._made[name] = make(), None
            except Lab3Error as error:
                self._made[name] = None, error
        value, failed = self._made[name]
        if failed is not None:
            raise failed
        return value  # type: ignore[no-any-return]

    @contextmanager
    def server(self, spec: ServerSpec, *, keep: bool = True) -> Iterator[RunningServer]:
        with self._member.server(spec, keep=keep) as running:
            yield running

    def progress(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        self._member.progress(message, done=done, total=total)

    def peak(self, spec: ServerSpec) -> Any:
        return self._member.peak(spec)


def _names(folders: Sequence[Path]) -> list[str]:
    names: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", todo="name the folders of submissions, such as submissions/*")
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name).strip(".") or "submission"
        if name in names:
            raise UsageError(
                f"{folder} and {names[name]} have the same name",
                why="results are kept by the folder's name",
                todo="rename one of them",
            )
        names[name] = folder
    return list(names)


def _kept(path: Path, key: str) -> Graded | None:
    """The result of an earlier run, if it is of the same submission and rubric and the machine was not in the way."""
    try:
        found = Graded.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.key == key and found.status != "infra_error" else None


def _write_outputs(graded: Sequence[Graded], folders: Mapping[str, Path], out: Path) -> None:
    from lab3.grading.exporters import write_outputs
    from lab3.grading.similar import fingerprint, similar

    pairs = similar([fingerprint(folder, name=name) for name, folder in sorted(folders.items())])
    write_outputs(graded, out, similar=pairs)


def _python(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
