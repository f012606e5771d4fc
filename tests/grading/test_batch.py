"""A batch writes each result as it comes, goes on where it was broken off, and one submission never stops the rest."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from lab3.errors import UsageError
from lab3.grading import batch
from lab3.grading.batch import Plan, grade_batch, rubric_key, submission_key
from lab3.grading.grade import chosen, grade, not_graded
from lab3.grading.results import Graded
from lab3.grading.subject import Submission
from tests.fake_openai import FakeOpenAI
from tests.grading.conftest import CHAT, LOOP, QUICK, SCRIPTS, Alone

pytestmark = pytest.mark.xdist_group("sandbox")

PLAN = Plan(engine="cpu", checks=SCRIPTS)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three submissions: all, a chat alone, and a script that is no Python."""
    texts = {"alice": {"chat": CHAT, "func": LOOP}, "bob": {"chat": CHAT}, "carol": {"chat": "def f(:"}}
    for name, scripts in texts.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for script, text in scripts.items():
            (tmp_path / "in" / name / f"{script}.py").write_text(dedent(text))
    return [tmp_path / "in" / name for name in texts]


@pytest.fixture
def grader(fake: FakeOpenAI) -> Callable[..., tuple[Graded, ...]]:
    """Grades with the stand-in for a model, one after the other; `graded` are those that were not kept."""

    def run(folders: Sequence[Path], out: Path, *, plan: Plan = PLAN, stop_after: int = 99) -> tuple[Graded, ...]:
        run.graded = []  # type: ignore[attr-defined]

        def grade_all(tasks) -> Iterator[Graded]:
            for task in tasks[:stop_after]:
                tmp = task.folder
                subject = Submission(
                    Alone(fake), str(task.folder), engine="cpu", fallback=lambda tmp=tmp: tmp, seed_name=task.name,
                    limits=QUICK,
                )  # fmt: skip
                run.graded.append(task.name)  # type: ignore[attr-defined]
                yield grade(subject, name=task.name, key=task.key, checks=plan.checks)
            if stop_after < len(tasks):
                raise KeyboardInterrupt

        return grade_batch(folders, out, plan=plan, grade_all=grade_all)

    return run


def contents(out: Path) -> dict[str, str]:
    """Every file of the results but for times."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if path.name == "result.json":
                text = json.dumps({**json.loads(text), "times": None})
            found[str(path.relative_to(out))] = text
    return found


def test_a_batch_that_was_broken_off_goes_on_and_comes_to_the_same(grader, folders: list[Path], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        grader(folders, tmp_path / "resumed", stop_after=1)
    assert (tmp_path / "resumed" / "alice" / "result.json").exists()
    grader(folders, tmp_path / "resumed")
    assert grader.graded == ["bob", "carol"]
    grader(folders, tmp_path / "whole")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_only_what_changed_is_graded_anew(grader, folders: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    grader(folders, out)
    (folders[1] / "chat.py").write_text(dedent(CHAT) + "# mended\n")
    grader(folders, out)
    assert grader.graded == ["bob"]
    grader(folders, out, plan=Plan(engine="cpu", checks=chosen(["chat"])))
    assert grader.graded == ["alice", "bob", "carol"], "another rubric"


def test_what_the_machine_prevented_is_tried_again(grader, fake: FakeOpenAI, folders: list[Path], tmp_path: Path):
    from tests.fake_openai import as_json
    from tests.grading.conftest import calculates

    fake.always = lambda _: as_json({"error": {"message": "out of memory"}}, status=500)
    (found,) = grader(folders[1:2], tmp_path / "out")
    assert found.status == "infra_error"
    fake.always = calculates
    (found,) = grader(folders[1:2], tmp_path / "out")
    assert found.status == "graded"


def test_a_result_that_is_cut_short_counts_as_none(grader, folders: list[Path], tmp_path: Path):
    grader(folders[1:2], tmp_path / "out")
    result = tmp_path / "out" / "bob" / "result.json"
    result.write_text(result.read_text()[:100])
    grader(folders[1:2], tmp_path / "out")
    assert grader.graded == ["bob"]


def test_the_key_is_made_of_every_file_and_of_no_name_outside(folders: list[Path], tmp_path: Path):
    rubric = rubric_key(PLAN)
    key = submission_key(folders[0], rubric)
    moved = folders[0].rename(tmp_path / "elsewhere")
    assert submission_key(moved, rubric) == key
    os.utime(moved / "chat.py", (1, 1))
    assert submission_key(moved, rubric) == key
    (moved / "notes.txt").write_text("x")
    assert submission_key(moved, rubric) != key
    assert rubric_key(Plan(engine="cpu", checks=SCRIPTS, timeout_s=5)) != rubric


def test_a_mistake_of_ours_with_one_submission_stops_no_other(
    folders: list[Path], tmp_path: Path, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
):
    grader = batch.Grader(PLAN, tmp_path)
    monkeypatch.setattr(batch, "grade", lambda *_, **__: 1 / 0)
    found = grader.grade_one(batch.Task(folders[0], "alice", "key"), Alone(fake))
    assert found.status == "infra_error"
    assert "ZeroDivisionError" in found.reasons[0]


def test_folders_that_are_none_or_have_one_name_are_refused(folders: list[Path], tmp_path: Path):
    with pytest.raises(UsageError, match="is no folder"):
        grade_batch([tmp_path / "missing"], tmp_path / "out", plan=PLAN)
    (tmp_path / "other" / "alice").mkdir(parents=True)
    with pytest.raises(UsageError, match="have the same name"):
        grade_batch([folders[0], tmp_path / "other" / "alice"], tmp_path / "out", plan=PLAN)
    with pytest.raises(UsageError, match="no check is named"):
        chosen(["chat", "nothing"])


class Seen(dict):
    """Evidence that can be watched."""


def test_a_batch_may_be_larger_than_memory(tmp_path: Path):
    watched: list[weakref.ref[Seen]] = []

    def grade_all(tasks: Sequence[batch.Task]) -> Iterator[Graded]:
        for task in tasks:
            seen = Seen(chat="word " * 1000)
            watched.append(weakref.ref(seen))
            yield replace(not_graded(task.name, task.key, "", SCRIPTS), evidence=seen)
            del seen
            gc.collect()
            alive.append(sum(each() is not None for each in watched))

    alive: list[int] = []
    for name in "abcdef":
        (tmp_path / "in" / name).mkdir(parents=True)
    grade_batch(sorted((tmp_path / "in").iterdir()), tmp_path / "out", plan=PLAN, grade_all=grade_all)
    assert max(alive) <= 1, "the evidence of those before is in their result.json alone"
