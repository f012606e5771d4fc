"""`lab3 grade-reports`: what it says, its exit codes, its JSON, and that it can be ended and gone on with."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

import psutil
import pytest

from lab3 import cli
from lab3.reports import batch, work_judging
from lab3.reports.work import Plan
from tests.report_steps import STEPS, TITLES
from tests.unit.test_report_batch import PLAN, grade, report


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """The batch's own steps are stand-ins; all the rest is as it is."""

    def make_plan(*, checks=(), **_):
        return Plan(steps=STEPS, checks=tuple(checks))

    monkeypatch.setattr(batch, "make_plan", make_plan)
    monkeypatch.setattr(work_judging, "check_ids", lambda: tuple(TITLES))


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["grade-reports", *map(str, arguments), "--quiet"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_says_each_reports_score_and_where_the_results_are(capsys, tmp_path):
    paths = [report(tmp_path, "good", "x", memory="1/2"), report(tmp_path, "bad", "wrong", memory="1/2")]

    code, out, _ = run(capsys, *paths, "--out", tmp_path / "out")

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 1
    assert lines[:2] == [
        "bad 5/10 1 failed, 0 points not judged graded",
        "good 10/10 0 failed, 0 points not judged graded",
    ]
    assert lines[2] == f"results: {tmp_path / 'out' / 'summary.html'}"


def test_it_says_how_many_points_nobody_has_judged(capsys, tmp_path):
    _, out, _ = run(capsys, report(tmp_path, "open", "fine"), "--out", tmp_path / "out")
    assert "0 failed, 5 points not judged" in " ".join(out.split())


@pytest.mark.parametrize(("line", "code"), [("fine", 0), ("wrong", 1), ("BREAK", 3)])
def test_the_exit_code_tells_fail_from_trouble(capsys, tmp_path, line, code):
    assert run(capsys, report(tmp_path, "a", line, memory="1/2"), "--out", tmp_path / "out")[0] == code


def test_json_has_the_verdicts_with_their_reasons(capsys, tmp_path):
    path = report(tmp_path, "a", "wrong", memory="1/2")

    code, out, _ = run(capsys, path, "--out", tmp_path / "out", "--json")

    (told,) = json.loads(out)["reports"]
    assert code == 1
    assert (told["name"], told["status"], told["score"], told["max_score"]) == ("a", "graded", 5, 10)
    assert [(each["id"], each["status"]) for each in told["verdicts"]] == [
        ("report.memory", "pass"),
        ("report.text", "fail"),
    ]


def test_only_the_checks_that_were_named_are_told(capsys, tmp_path):
    path = report(tmp_path, "a", "wrong", memory="1/2")

    code, out, _ = run(capsys, path, "--out", tmp_path / "out", "--checks", "report.mem", "--json")

    assert code == 0
    assert [each["id"] for each in json.loads(out)["reports"][0]["verdicts"]] == ["report.memory"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "are needed"),
        (["{here}"], "are needed"),
        (["{here}/nowhere", "--out", "{here}/out"], "is not there"),
        (["{here}", "--out", "{here}/out", "--checks", "nothing"], "no check begins with 'nothing'"),
        (["--review", "{here}"], "holds no results"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_do(capsys, tmp_path, arguments, said):
    code, _, err = run(capsys, *(each.format(here=tmp_path) for each in arguments))

    assert code == 2
    assert said in err
    assert "what to do" in err


def test_results_that_cannot_be_written_to_are_not_reviewed(capsys, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)

    code, told, err = run(capsys, "--review", tmp_path, "--json")

    assert (code, json.loads(told)["exit_code"]) == (2, 2)
    assert "Read-only file system" in err
    assert "choose another place with --review" in err
    assert "Traceback" not in err


def test_its_help_tells_the_exit_codes():
    done = subprocess.run([sys.executable, "-m", "lab3", "grade-reports", "--help"], capture_output=True, text=True)

    assert done.returncode == 0
    assert "3 the machine was in the way" in " ".join(done.stdout.split())


CHILD = """
import sys
from pathlib import Path
from tests.unit.test_report_batch import PLAN, grade_batch

if __name__ == "__main__":
    paths = [Path(each) for each in sys.argv[2:]]
    grade_batch(paths, Path(sys.argv[1]), plan=PLAN, workers=1, told=lambda name: print(name, flush=True))
"""


def test_a_run_that_was_killed_is_gone_on_with(tmp_path):
    paths = [report(tmp_path, name, name, memory="1/2") for name in "abc"] + [report(tmp_path, "d", "HANG")]
    out = tmp_path / "out"
    (script := tmp_path / "child.py").write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, str(script), str(out), *map(str, paths)], stdout=subprocess.PIPE, text=True, env=environment
    )
    done = [child.stdout.readline().strip() for _ in range(3)]
    family = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left, "the worker that hangs ends with the run"
    assert done == ["a", "b", "c"]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert len(times) == 3
    report(tmp_path, "d", "no more")

    found = grade(tmp_path, *paths)

    assert [each.graded.name for each in found.reports] == ["a", "b", "c", "d"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_review_serves_the_pages_until_it_is_ended(tmp_path):
    grade(tmp_path, report(tmp_path, "a", "fine", memory="1/2"), plan=PLAN)
    command = [sys.executable, "-m", "lab3", "grade-reports", "--review", str(tmp_path / "out"), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        text = ""
        end = time.monotonic() + 60
        while not text.rstrip().endswith("}") and time.monotonic() < end:
            text += child.stdout.readline()
        url = json.loads(text)["address"]
        browser = build_opener(HTTPCookieProcessor())
        assert "1 submissions" in browser.open(url).read().decode()
        assert "Memory is shown" in browser.open(url.split("?")[0] + "a/page.html").read().decode()
    finally:
        child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0
