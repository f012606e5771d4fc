"""`lab3 grade` with the real model: submissions come to what is due, and a batch that was killed to the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.submissions import TEMPLATES, Expected

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("servers")]

ROOT = Path(__file__).parents[2]
# Of each kind one: the whole corpus is graded by `python -m bench.grading`.
CHOSEN = ("tutorial", "plus_and_times", "streamed", "answer_without_asking", "wrong_result", "chat_only")
AGAIN = ("streamed", "chat_only")  # graded by a batch that is killed


def command(folders: list[Path], out: Path, *options: str) -> list[str]:
    asked = ["--out", str(out), "--checks", "chat,tools,scripts", "--json", *options]
    return [sys.executable, "-m", "lab3", "grade", *map(str, folders), *asked]


@dataclass(frozen=True)
class Batch:
    """Submissions, what is due to them, and what they came to."""

    folders: dict[str, Path]
    due: dict[str, Expected]
    out: Path
    report: dict[str, Any]
    said: str

    def statuses(self, name: str) -> dict[str, str]:
        (found,) = [each for each in self.report["submissions"] if each["name"] == name]
        return {verdict["id"]: verdict["status"] for verdict in found["verdicts"]}


@pytest.fixture(scope="module")
def batch(w4a16: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Graded once; `w4a16` puts the model into the cache first."""
    top = tmp_path_factory.mktemp("batch")
    due = {}
    for name in CHOSEN:
        (top / name).mkdir()
        due[name] = TEMPLATES[name](top / name, random.Random(f"0 {name}"))
    folders = {name: top / name for name in CHOSEN}
    done = subprocess.run(
        command(list(folders.values()), top / "out"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Batch(folders, due, top / "out", json.loads(done.stdout), done.stderr)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_submission_comes_to_what_is_due(batch: Batch, name: str):
    found, due = batch.statuses(name), batch.due[name]
    assert {each: found[each] for each in due.passing} == dict.fromkeys(due.passing, "pass")
    assert {each: found[each] for each in due.failing} == dict.fromkeys(due.failing, "fail")
    assert not {each for each in due.not_passing if found[each] == "pass"}


def test_all_were_graded_by_one_server(batch: Batch):
    assert len(list((batch.out / "logs").glob("*.log"))) == 1
    assert (batch.out / "grades.csv").exists()
    assert (batch.out / "summary.html").exists()


def test_a_batch_that_is_killed_leaves_nothing_and_comes_to_the_same(batch: Batch, tmp_path: Path):
    folders, out = [batch.folders[name] for name in AGAIN], tmp_path / "out"
    with (tmp_path / "said").open("w") as said:
        killed = subprocess.Popen(
            command(folders, out, "--workers", "1"), stdout=said, stderr=said, cwd=ROOT, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while not list(out.glob("*/result.json")):
        assert killed.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _gone, alive = psutil.wait_procs(family, timeout=15)
    assert not [each.cmdline() for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    kept = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert len(kept) < len(AGAIN)
    done = subprocess.run(command(folders, out), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    # Byte for byte where the model is deterministic (tests/grading/test_batch.py): one that samples in other batches,
    # whose sums are rounded otherwise, may word a text in another way.
    for name in AGAIN:
        assert grade_of(out, name) == grade_of(batch.out, name)
    for name, written in kept.items():
        assert (out / name / "result.json").stat().st_mtime_ns == written, "it was not graded twice"


def grade_of(out: Path, name: str) -> tuple[Any, ...]:
    """What the submission came to."""
    told = json.loads((out / name / "result.json").read_text())
    verdicts = {verdict["id"]: verdict["status"] for verdict in told["verdicts"]}
    return told["key"], told["status"], told["score"], verdicts
