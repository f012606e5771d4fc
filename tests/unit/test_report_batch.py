"""A batch of reports: nothing that one does keeps the others from their results, and nothing is done twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from lab3.errors import UsageError
from lab3.reports.batch import Batch, grade_batch, grade_reports, names_of, write_batch
from lab3.reports.overrides import Override, load_overrides, save_override
from lab3.reports.pool import Bounds, run_all
from lab3.reports.provenance_tutorial import tutorial_of
from lab3.reports.store import load_result
from lab3.reports.work import Plan, code_files
from tests.report_steps import STEPS, judged, read

PLAN = Plan(steps=STEPS)


def report(folder: Path, name: str, *lines: str, memory: str | None = None) -> Path:
    """A report's folder; with `memory` it has a picture that shows it."""
    (made := folder / name).mkdir(parents=True, exist_ok=True)
    shown = []
    if memory is not None:
        Image.effect_noise((200, 100), 60).save(made / "memory.png")
        (made / "memory.png.txt").write_text(memory)
        shown = ["![](memory.png)"]
    (made / "report.md").write_text("\n".join([*lines, *shown]), encoding="utf-8")
    return made


def grade(tmp_path: Path, *paths: Path, **more) -> Batch:
    asked = {"workers": 1, "bounds": Bounds(wall_s=60)} | more
    return grade_batch(list(paths), tmp_path / "out", plan=asked.pop("plan", PLAN), **asked)


def statuses(batch: Batch) -> dict[str, str]:
    return {each.graded.name: each.status for each in batch.reports}


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8-sig").splitlines()))


def test_each_report_has_a_result_a_page_and_its_rows_in_the_tables(tmp_path):
    good = report(tmp_path, "good", "# Memory", memory="11368/24566")
    bad = report(tmp_path, "bad", "this is wrong")

    batch = grade(tmp_path, good, bad)

    assert statuses(batch) == {"bad": "needs_review", "good": "graded"}
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        *("grades.csv", "junit.xml", "summary.json", "summary.html", "results.csv", "summary.md", "likenesses.json")
    }
    for name in ("good", "bad"):
        assert {"result.json", "page.html", "results.json"} <= {path.name for path in (out / name).iterdir()}
    assert [(row["report"], row["check"], row["status"]) for row in rows(out)] == [
        ("bad", "report.memory", "unknown"),
        ("bad", "report.text", "fail"),
        ("good", "report.memory", "pass"),
        ("good", "report.text", "pass"),
    ]


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(2, 1, [2, 2]), (2, 2, [1, 1]), (3, 2, [1, 1]), (4, 2, [2, 2]), (2, 8, [1, 1])]
)
def test_workers_share_the_cores(tmp_path, monkeypatch, cores: int, workers: int, threads: list[int]):
    monkeypatch.setattr("lab3.reports.batch._cores", lambda: cores)
    grade(tmp_path, *(report(tmp_path, name, memory="THREADS/24566") for name in ("one", "two")), workers=workers)

    readings = [load_result(tmp_path / "out" / name / "result.json").readings for name in ("one", "two")]
    assert [each.used_mib for (each,) in readings] == threads


def test_a_single_report_has_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("lab3.reports.batch._cores", lambda: 2)
    grade(tmp_path, report(tmp_path, "one", memory="THREADS/24566"), workers=2)

    (reading,) = load_result(tmp_path / "out" / "one" / "result.json").readings
    assert reading.used_mib == 2


def test_a_reading_keeps_its_picture_box_text_and_confidence_in_the_result(tmp_path):
    grade(tmp_path, report(tmp_path, "good", memory="11368/24566"))

    (reading,) = load_result(tmp_path / "out" / "good" / "result.json").readings

    assert (reading.used_mib, reading.place.quote) == (11368, "11368/24566")
    assert (reading.place.box, reading.place.confidence) == ((10, 10, 110, 30), 0.9)
    assert len(reading.place.picture) == 64


@pytest.mark.parametrize(
    ("line", "status", "why"),
    [
        ("DIE", "infra_error", "exit code 7"),
        ("HANG", "timeout", "longer than 5 s"),
        ("GROW", "infra_error", "more than 1024 MiB"),
        ("BREAK", "infra_error", "lab3 failed: ZeroDivisionError: our mistake"),
    ],
)
def test_a_report_that_ends_or_holds_its_worker_is_no_students_fail_and_the_others_go_on(tmp_path, line, status, why):
    paths = [report(tmp_path, "a", line), report(tmp_path, "b", "fine"), report(tmp_path, "c", "fine")]

    batch = grade(tmp_path, *paths, bounds=Bounds(wall_s=5, memory_mib=1024))

    assert statuses(batch) == {"a": status, "b": "needs_review", "c": "needs_review"}
    assert why in batch.reports[0].reasons[0]
    assert {verdict.status for verdict in batch.reports[0].verdicts} == {"unknown"}
    assert batch.exit_code == 3


def test_a_folder_without_a_report_waits_for_a_person(tmp_path):
    (tmp_path / "empty").mkdir()

    batch = grade(tmp_path, tmp_path / "empty", report(tmp_path, "good", memory="1/2"))

    assert statuses(batch) == {"empty": "needs_review", "good": "graded"}
    assert "cannot be read" in batch.reports[0].reasons[0]
    assert (tmp_path / "out" / "empty" / "page.html").is_file()


def test_a_picture_that_a_library_chokes_on_is_told_and_the_rest_is_judged(tmp_path):
    batch = grade(tmp_path, report(tmp_path, "a", "wrong", memory="BROKEN"))

    assert batch.reports[0].graded.problems == ("the picture memory.png cannot be read: a library choked on it",)
    assert [verdict.status for verdict in batch.reports[0].verdicts] == ["unknown", "fail"]


def changed(tmp_path: Path, *paths: Path, **more) -> set[str]:
    """The reports whose result a second run writes anew."""
    found = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*/result.json")}
    grade(tmp_path, *paths, **more)
    return {path.parent.name for path in (tmp_path / "out").glob("*/result.json") if path.stat().st_ino != found[path]}


def test_a_second_run_grades_nothing_again(tmp_path):
    paths = [report(tmp_path, "a", "wrong", memory="1/2"), report(tmp_path, "b", "fine")]
    first = grade(tmp_path, *paths)

    assert changed(tmp_path, *paths) == set()
    assert grade(tmp_path, *paths).reports == first.reports


def test_a_changed_report_or_picture_or_rubric_is_graded_again(tmp_path):
    paths = [report(tmp_path, name, name, memory="1/2") for name in ("a", "b", "c")]
    grade(tmp_path, *paths)
    report(tmp_path, "a", "another text", memory="1/2")
    Image.effect_noise((200, 100), 90).save(tmp_path / "b" / "memory.png")
    Image.open(tmp_path / "c" / "memory.png").save(tmp_path / "c" / "unused.png")

    assert changed(tmp_path, *paths) == {"a", "b"}
    assert changed(tmp_path, *paths, plan=Plan(steps=STEPS, checks=("report.text",))) == {"a", "b", "c"}


def test_the_rubrics_key_covers_what_reads_and_judges_and_not_what_shows():
    names = {path.name for path in code_files() if path.parent.name == "reports"}

    assert {"model.py", "work.py", "work_judging.py", "provenance_tutorial.py"} <= names
    assert not {"page.py", "page_server.py", "batch.py", "export.py", "overrides.py", "command.py"} & names


def test_a_figure_in_the_tutorials_words_is_doubted_and_a_command_counts(tmp_path):
    path = report(tmp_path, "a", "$ lmdeploy serve api_server ./m", "![](memory.png)", memory="11368/24566")
    tutorial = tutorial_of(read(path), name="lab.md")

    grade(tmp_path, path, plan=Plan(steps=STEPS, tutorials=(tutorial,)))

    command, *memory = load_result(tmp_path / "out" / "a" / "result.json").readings
    assert command.argv == ("lmdeploy", "serve", "api_server", "./m")
    assert [each.doubt for each in memory] == ["it stands in the tutorial, figure for figure"] * 2


def test_a_result_that_the_machine_spoiled_or_that_was_cut_off_is_made_again(tmp_path):
    paths = [report(tmp_path, "a", "BREAK"), report(tmp_path, "b", "fine", memory="1/2")]
    grade(tmp_path, *paths)
    (tmp_path / "out" / "b" / "result.json").write_text('{"schema": "lab3-report')

    assert changed(tmp_path, *paths) == {"a", "b"}
    assert load_result(tmp_path / "out" / "b" / "result.json").status == "graded"


def test_only_the_checks_that_were_asked_for_are_told(tmp_path):
    batch = grade(tmp_path, report(tmp_path, "a", "fine"), plan=Plan(steps=STEPS, checks=("report.mem",)))

    assert [each.judged.id for each in batch.reports[0].verdicts] == ["report.memory"]


def readers(path: Path) -> list[int]:
    """The processes that read a report's pictures, once for each time that they did."""
    return [int(pid) for file in sorted(path.glob("*.read")) for pid in file.read_text().split()]


def test_what_pictures_say_is_read_only_where_a_check_needs_it(tmp_path):
    path = report(tmp_path, "a", "wrong", "![](memory.png)", memory="1/2")

    batch = grade(tmp_path, path, plan=Plan(steps=STEPS, checks=("report.text",)))

    assert readers(path) == []
    assert [(each.judged.id, each.status) for each in batch.reports[0].verdicts] == [("report.text", "fail")]
    assert len(list((tmp_path / "out" / "a" / "pictures").glob("*.png"))) == 1
    assert [each.kind for each in batch.likenesses] == ["same_picture"]


@pytest.mark.parametrize("checks", [(), ("report.memory",), ("report.text", "report.mem")])
def test_a_later_run_with_other_checks_reads_the_pictures_that_it_needs(tmp_path, checks):
    path = report(tmp_path, "a", "fine", memory="1/2")
    grade(tmp_path, path, plan=Plan(steps=STEPS, checks=("report.text",)))

    batch = grade(tmp_path, path, plan=Plan(steps=STEPS, checks=checks))

    assert len(readers(path)) == 1
    assert batch.reports[0].verdicts[0].status == "pass"


def album(tmp_path: Path, name: str, *said: str) -> Path:
    """A report with a picture for each thing that is said; the first is the largest file."""
    (made := tmp_path / name).mkdir()
    for number, text in enumerate(said):
        Image.effect_noise((200 - 20 * number, 100), 60).save(made / f"{number}.png")
        (made / f"{number}.png.txt").write_text(text)
    (made / "report.md").write_text("\n".join(f"![]({number}.png)" for number in range(len(said))), encoding="utf-8")
    return made


def told(tmp_path: Path, name: str) -> dict:
    """A result, but for its time and key."""
    result = json.loads((tmp_path / "out" / name / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in result.items() if key not in ("times", "key", "path")}


def test_the_pictures_of_one_report_are_read_by_several_workers_and_say_the_same(tmp_path):
    said = ("SLOW 1/9", "SLOW 2/9", "BROKEN", "4/9\n5/9", "1/9")
    path = album(tmp_path, "a", *said)
    grade(tmp_path, path, workers=1)
    alone, prints = told(tmp_path, "a"), (tmp_path / "out" / "a" / "prints.json").read_bytes()
    assert len(set(readers(path))) == 1
    for file in (*path.glob("*.read"), tmp_path / "out" / "a" / "result.json"):
        file.unlink()

    grade(tmp_path, path, workers=3)

    assert len(readers(path)) == len(said)
    assert len(set(readers(path))) >= 2
    assert told(tmp_path, "a") == alone
    assert (tmp_path / "out" / "a" / "prints.json").read_bytes() == prints
    assert [each["used_mib"] for each in alone["readings"]] == [1, 2, 4, 5, 1]
    assert alone["problems"] == ["the picture 2.png cannot be read: a library choked on it"]


@pytest.mark.parametrize(("cores", "threads"), [(2, [1, 1]), (4, [2, 2]), (3, [1, 1])])
def test_workers_that_share_a_reports_pictures_share_the_cores(tmp_path, monkeypatch, cores, threads):
    monkeypatch.setattr("lab3.reports.batch._cores", lambda: cores)
    grade(tmp_path, album(tmp_path, "a", "THREADS/9", "THREADS/8"), workers=2)

    readings = load_result(tmp_path / "out" / "a" / "result.json").readings
    assert [each.used_mib for each in readings] == threads


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        ("DIE", "infra_error", "exit code 7"),
        ("HANG", "timeout", "longer than 5 s"),
        ("GROW", "infra_error", "more than 1024 MiB"),
        ("MISSING", "infra_error", "lab3 failed: ImportError: no library"),
    ],
)
def test_a_picture_that_ends_or_holds_its_worker_is_no_students_fail(tmp_path, said, status, why):
    paths = [album(tmp_path, "a", "1/9", said, *["2/9"] * 3), album(tmp_path, "b", "3/9", "4/9")]

    batch = grade(tmp_path, *paths, workers=3, bounds=Bounds(wall_s=5, memory_mib=1024))

    assert statuses(batch) == {"a": status, "b": "graded"}
    assert why in batch.reports[0].reasons[0]
    assert {verdict.status for verdict in batch.reports[0].verdicts} == {"unknown"}


def test_the_pictures_of_a_report_have_its_time_together(tmp_path):
    slow = ["SLOW 1/9", *["SLOW 2/9"] * 8]

    batch = grade(tmp_path, album(tmp_path, "a", *slow), workers=2, bounds=Bounds(wall_s=2))

    assert statuses(batch) == {"a": "timeout"}
    assert batch.reports[0].reasons == ("it took longer than 2 s",)
    assert len(readers(tmp_path / "a")) < len(slow)


def test_a_report_that_was_graded_is_kept_whatever_the_workers(tmp_path):
    path = album(tmp_path, "a", "1/9", "2/9")
    grade(tmp_path, path)

    assert changed(tmp_path, path, workers=3) == set()
    assert len(readers(path)) == 2


@pytest.mark.parametrize(("line", "memory", "code"), [("fine", "1/2", 0), ("fine", None, 0), ("wrong", "1/2", 1)])
def test_the_exit_code_says_whether_a_check_failed(tmp_path, line, memory, code):
    assert grade(tmp_path, report(tmp_path, "a", line, memory=memory)).exit_code == code


def test_results_come_with_readings_and_likenesses(tmp_path):
    twice = report(tmp_path, "twice", "# One", "![](memory.png)", "# Two", memory="11368/24566")

    (graded,) = grade_reports([twice], tmp_path / "out", plan=PLAN, workers=1)

    assert [each.kind for each in graded.likenesses] == ["same_picture"]
    assert [each.used_mib for each in graded.readings] == [11368, 11368]


# --- names --------------------------------------------------------------------------------------------------------


def test_a_report_is_named_by_its_folder_or_file(tmp_path):
    folder = report(tmp_path, "王 伟", "x")
    (tmp_path / "notes.md").write_text("x")

    assert list(names_of([folder, tmp_path / "notes.md"])) == ["王_伟", "notes"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [report(tmp_path, name, "x") / "report.md" for name in ("a", "b")]

    assert list(names_of(paths)) == ["a-report", "b-report"]


def test_what_is_not_there_or_named_twice_is_wrong_usage(tmp_path):
    folder = report(tmp_path, "a", "x")
    with pytest.raises(UsageError, match="not there"):
        names_of([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="same name"):
        names_of([folder, folder])


# --- what people decide -------------------------------------------------------------------------------------------


def decide(tmp_path: Path, status: str, **more) -> None:
    folder = tmp_path / "out" / "a"
    found = next(each for each in load_result(folder / "result.json").judged if each.id == "report.text")
    save_override(folder, name="a", judged=found, override=Override(status=status, **more))


def test_a_persons_word_counts_and_says_so(tmp_path):
    path = report(tmp_path, "a", "wrong", memory="1/2")
    assert grade(tmp_path, path).reports[0].score == 5
    decide(tmp_path, "pass", note="I asked")

    (settled,) = write_batch(["a"], tmp_path / "out").reports

    assert (settled.score, settled.verdicts[1].status) == (10, "pass")
    row = rows(tmp_path / "out")[1]
    assert (row["status"], row["lab3_status"], row["decided"], row["note"]) == ("pass", "fail", "overridden", "I asked")
    gradescope = json.loads((tmp_path / "out" / "a" / "results.json").read_text())
    assert gradescope["score"] == 10
    assert "set by a person (lab3: fail)" in gradescope["tests"][1]["output"]


def test_no_regrade_touches_what_a_person_decided(tmp_path):
    path = report(tmp_path, "a", "wrong", memory="1/2")
    grade(tmp_path, path)
    decide(tmp_path, "pass")
    before = (tmp_path / "out" / "a" / "override.json").read_bytes()
    report(tmp_path, "a", "all wrong, and more", memory="1/2")

    grade(tmp_path, path, plan=Plan(steps=STEPS, checks=("report",)))

    assert (tmp_path / "out" / "a" / "override.json").read_bytes() == before


def test_a_verdict_that_changed_since_it_was_decided_asks_to_look_again(tmp_path):
    path = report(tmp_path, "a", "wrong", memory="1/2")
    grade(tmp_path, path)
    decide(tmp_path, "fail", accepted=True)
    assert grade(tmp_path, path).reports[0].status == "graded"
    report(tmp_path, "a", "right", memory="1/2")

    (settled,) = grade(tmp_path, path).reports

    assert (settled.verdicts[1].status, settled.verdicts[1].changed, settled.status) == ("fail", True, "needs_review")
    assert "look again" in settled.reasons[0]
    assert rows(tmp_path / "out")[1]["changed"] == "was fail"


def test_what_waits_for_a_person_is_graded_once_they_decided(tmp_path):
    grade(tmp_path, report(tmp_path, "a", "fine"))
    folder = tmp_path / "out" / "a"
    waiting = load_result(folder / "result.json").judged[0]

    save_override(folder, name="a", judged=waiting, override=Override(status="unknown", accepted=True))

    assert write_batch(["a"], tmp_path / "out").reports[0].status == "graded"


def test_taking_a_decision_back_leaves_the_others(tmp_path):
    one, other = judged("report.text", "fail"), judged("report.memory", "pass")
    for each in (one, other):
        save_override(tmp_path, name="a", judged=each, override=Override(status="unknown"))

    save_override(tmp_path, name="a", judged=one, override=None)

    assert list(load_overrides(tmp_path)) == ["report.memory"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema": "other"}', '{"schema": "lab3-report-overrides/1", "overrides": {"x": {"status": "good"}}}'],
)
def test_decisions_that_cannot_be_read_are_never_passed_over(tmp_path, text):
    path = report(tmp_path, "a", "fine")
    grade(tmp_path, path)
    (tmp_path / "out" / "a" / "override.json").write_text(text)

    with pytest.raises(UsageError, match="cannot be used"):
        grade(tmp_path, path)
    assert write_batch(["a"], tmp_path / "out").reports[0].status == "needs_review"


def test_decisions_on_another_report_are_refused(tmp_path):
    save_override(tmp_path, name="b", judged=judged("report.text", "fail"), override=Override(status="pass"))

    with pytest.raises(UsageError, match="cannot be used"):
        load_overrides(tmp_path, name="a")


# --- the pool -----------------------------------------------------------------------------------------------------


def test_leaving_early_ends_the_workers(tmp_path):
    import multiprocessing

    running = run_all(["a", "b", "c"], str.upper, workers=2)
    assert next(running).result in ("A", "B")
    running.close()

    assert not [each for each in multiprocessing.active_children() if each.name == "lab3-report"]
