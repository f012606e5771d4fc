"""What a batch is written as, read back by real parsers: every text of a hostile student comes back as text."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab3.errors import UsageError
from lab3.grading.export_text import cell, one_line, visible, write_text
from lab3.grading.exporters import write_outputs
from lab3.grading.results import Graded, in_short
from lab3.grading.similar import Pair

HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '"]]><!ENTITY x SYSTEM "file:///etc/passwd">&x;',
    "=cmd|' /C calc'!A0",
    "\t=1+1",
    "@SUM(A1)",
    "lone \ud800 surrogate \udcff",
    "bell \x07 escape \x1b[31m nul \x00 delete \x7f",
    "right \u202e to left \u2066 isolate",
    "not a character \uffff \U0001ffff",
    "separators \u2028 \u2029 and \x85",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 300_000,
    "quotes ' \" ` and ; , newline\nsecond line\r\nthird",
]


def verdict(number: int = 0, status: str = "pass", text: str = "it is so", **more: Any) -> dict[str, Any]:
    blame = {"whose": "subject", "kind": "kind", "text": text, "command": text, "log_tail": [text]}
    return {
        "id": f"task.check{number}",
        "task": 1 + number % 2,
        "title": "A check",
        "title_zh": "检查",
        "status": status,
        "points": 5 if status == "pass" else 0,
        "max_points": 5,
        "reason": text,
        "expected": text,
        "actual": {"found": text},
        "source": text,
        "required": True,
        "blame": blame if status == "fail" else None,
    } | more


def test_a_graders_line_counts_what_failed_and_the_points_that_nobody_has_judged():
    judged = graded(verdicts=(verdict(0), verdict(1, "fail"), verdict(2, "unknown") | {"max_points": 12}))
    assert in_short(judged).split() == ["1", "failed,", "12", "points", "not", "judged"]


def graded(name: str = "s1", *, verdicts: Any = None, text: str = "", **more: Any) -> Graded:
    verdicts = (verdict(0), verdict(1, "fail"), verdict(2, "unknown")) if verdicts is None else tuple(verdicts)
    whole = Graded(
        name=name,
        student=text or f"student of {name}",
        status="graded",
        reasons=(text,) if text else (),
        score=sum(each["points"] for each in verdicts),
        max_score=sum(each["max_points"] for each in verdicts),
        verdicts=verdicts,
        collected={},
        runs=(),
        evidence={},
        key="key",
        times={"total": 1.5},
    )
    return replace(whole, **more)


def hostile(text: str) -> Graded:
    return graded(text=text, status="needs_review", verdicts=[verdict(0, "fail", text), verdict(1, "unknown", text)])


def pair(first: str = "s1", second: str = "s2", similarity: float | None = 0.97, **more: Any) -> Pair:
    facts = {"measured_on": 100, "common": 0.5, "equal_files": (), "alike": (), "text": "they are alike."} | more
    return Pair(first=first, second=second, similarity=similarity, **facts)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def suites(out: Path) -> list[ElementTree.Element]:
    text = (out / "junit.xml").read_text(encoding="utf-8")
    assert "<!" not in text  # neither a document type nor an entity of its own
    return list(ElementTree.fromstring(text))


def told(path: Path) -> Any:
    def twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=twice)


class Seen(HTMLParser):
    """The tags, attributes and text that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def check_harmless(self) -> None:
        """Nothing is loaded, run or sent, whatever the Content-Security-Policy is worth in a browser."""
        names = {tag for tag, _ in self.tags}
        assert not names & {
            "script",
            "img",
            "iframe",
            "object",
            "embed",
            "link",
            "form",
            "svg",
            "base",
            "video",
            "audio",
        }
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") or name in ("src", "srcdoc", "action") for name in attributes)
            assert tag == "a" or "href" not in attributes
            assert (attributes.get("href") or "./").startswith("./")
        policies = [each["content"] for _, each in self.tags if each.get("http-equiv") == "Content-Security-Policy"]
        assert [policy.startswith("default-src 'none'; style-src 'unsafe-inline'") for policy in policies] == [True]
        assert [tag for tag, _ in self.tags].count("style") == 1


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_submission_and_two_columns_for_each_check(tmp_path):
    write_outputs([graded("b", reasons=("one", "two"), status="timeout"), graded("a")], tmp_path)

    first, second = table(tmp_path)

    assert list(first)[:5] == ["name", "student", "status", "score", "max_score"]
    assert list(first)[-1] == "reasons"
    assert (first["name"], first["student"], first["status"], first["score"]) == ("a", "student of a", "graded", "5")
    assert (first["task.check1 points"], first["task.check1 status"]) == ("0", "fail")
    assert (second["name"], second["reasons"]) == ("b", "one | two")


def test_a_check_that_a_submission_was_not_asked_is_empty_in_the_table(tmp_path):
    write_outputs([graded("a"), graded("b", verdicts=[verdict(7)])], tmp_path)

    assert [row["task.check7 points"] for row in table(tmp_path)] == ["", "5"]
    assert [row["task.check0 status"] for row in table(tmp_path)] == ["pass", ""]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "  =1", "\n+1", "＝1", "=cmd|' /C calc'!A0"]
)
def test_no_cell_is_a_formula(text):
    assert cell(text)[0] in "'\\"
    assert cell(text).removeprefix("'").removeprefix("\\r") == text.strip()


def test_numbers_stay_numbers():
    assert (cell(-3), cell(0.5), cell(None)) == (-3, 0.5, None)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_comes_back_from_the_table_as_text(tmp_path, text):
    write_outputs([hostile(text), graded("s2")], tmp_path)

    first, second = table(tmp_path)

    assert first["reasons"].removeprefix("'") == one_line(text)
    assert first["student"].isprintable()
    assert not first["reasons"].startswith(("=", "+", "-", "@", "\t"))
    assert second["name"] == "s2"


# --- JUnit --------------------------------------------------------------------------------------------------------

# What Jenkins' junit-10.xsd allows: attributes (required ones first, counted), and elements within.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    **{tag: (set(), {"type", "message"}, set()) for tag in ("skipped", "error", "failure")},
}


def check_schema(element: ElementTree.Element) -> None:
    required, optional, within = SCHEMA[element.tag]
    assert required <= set(element.attrib) <= required | optional
    if element.tag not in ("failure", "error", "skipped"):
        assert not (element.text or "").strip()
    for child in element:
        assert child.tag in within
        check_schema(child)


@pytest.mark.parametrize("status", ["graded", "infra_error", "timeout", "needs_review"])
def test_junit_keeps_to_the_schema_and_counts_right(tmp_path, status):
    write_outputs([graded("a", status=status), graded("b", verdicts=[])], tmp_path)
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()

    check_schema(root)
    for element in (root, *root):
        assert int(element.get("tests")) == len(list(element.iter("testcase")))
        assert int(element.get("failures")) == len(list(element.iter("failure")))
        assert int(element.get("errors")) == len(list(element.iter("error")))
    assert [int(suite.get("skipped")) for suite in root] == [len(list(suite.iter("skipped"))) for suite in root]


def test_a_fail_is_a_failure_and_unknown_is_skipped(tmp_path):
    write_outputs([graded()], tmp_path)
    (suite,) = suites(tmp_path)

    found = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}

    assert found == {"task.check0": [], "task.check1": ["failure"], "task.check2": ["skipped"]}
    assert suite.find("testcase/failure").get("message") == "it is so"
    assert suite.find("testcase/failure").text == "subject: it is so"


def test_points_are_properties(tmp_path):
    write_outputs([graded()], tmp_path)
    (suite,) = suites(tmp_path)

    found = {each.get("name"): each.get("value") for each in suite.iter("property")}

    assert (found["score"], found["max_score"], found["status"]) == ("5", "15", "graded")
    assert (found["task.check1.points"], found["task.check1.max_points"]) == ("0", "5")


def test_with_the_machine_in_the_way_what_is_unknown_is_an_error_and_a_fail_stays_one(tmp_path):
    write_outputs([graded(status="infra_error", reasons=("no disk",))], tmp_path)
    (suite,) = suites(tmp_path)

    found = {case.get("name"): [child.tag for child in case] for case in suite.iter("testcase")}

    assert (found["task.check1"], found["task.check2"], found["grading"]) == (["failure"], ["error"], ["error"])
    assert suite.findall("testcase/error")[-1].get("message") == "no disk"


@pytest.mark.parametrize(
    ("status", "tag"), [("infra_error", "error"), ("timeout", "error"), ("needs_review", "skipped")]
)
def test_a_submission_without_verdicts_is_not_green(tmp_path, status, tag):
    write_outputs([graded(status=status, verdicts=[])], tmp_path)

    assert [each.tag for each in suites(tmp_path)[0].find("testcase")] == [tag]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_comes_back_from_junit_as_text(tmp_path, text):
    write_outputs([hostile(text)], tmp_path)
    (suite,) = suites(tmp_path)

    failure = suite.find("testcase/failure")

    assert failure.get("message") == one_line(text)
    assert failure.text == visible(f"subject: {text}")
    assert len(list(suite.iter("testcase"))) == 3


# --- Gradescope ---------------------------------------------------------------------------------------------------

_WORDS = ("visible", "hidden", "after_due_date", "after_published")


def check_gradescope(results: dict[str, Any]) -> None:
    """The fields of Gradescope's "Autograder Specifications", and their types."""
    known = {"score", "execution_time", "output", "output_format", "test_output_format", "test_name_format"}
    known |= {"visibility", "stdout_visibility", "extra_data", "tests", "leaderboard"}
    assert set(results) <= known
    assert isinstance(results["score"], int | float)
    assert isinstance(results["output"], str)
    assert results["visibility"] in _WORDS
    assert results["stdout_visibility"] in _WORDS
    assert {results[f"{what}output_format"] for what in ("", "test_")} == {results["test_name_format"]} == {"text"}
    for test in results["tests"]:
        assert set(test) >= {"name", "output", "visibility"}
        assert test["visibility"] in _WORDS
        judged = set(test) - {"name", "output", "visibility"}
        assert judged in (set(), {"score", "max_score", "status"})
        if judged:
            assert test["status"] in ("passed", "failed")
            assert 0 <= test["score"] <= test["max_score"]
        assert isinstance(test["name"], str)
        assert isinstance(test["output"], str)


def test_each_submission_has_gradescopes_results(tmp_path):
    write_outputs([graded("a"), graded("b", verdicts=[verdict(0)])], tmp_path)

    results = told(tmp_path / "a" / "results.json")

    check_gradescope(results)
    assert results["score"] == 5
    assert [(test["score"], test["max_score"], test["status"]) for test in results["tests"][:2]] == [
        (5, 5, "passed"),
        (0, 5, "failed"),
    ]
    assert not {"score", "max_score", "status"} & set(results["tests"][2]), "neither passed nor failed"
    assert results["tests"][2]["output"] == "Not judged yet (up to 5 points): it is so"
    assert results["tests"][0]["name"] == "task.check0: A check 检查"
    assert len(told(tmp_path / "b" / "results.json")["tests"]) == 1


def test_what_the_machines_trouble_left_undone_is_hidden_from_the_student(tmp_path):
    write_outputs([graded("a", status="infra_error", reasons=("no disk",))], tmp_path)

    results = told(tmp_path / "a" / "results.json")

    check_gradescope(results)
    assert results["visibility"] == "hidden"
    assert "not your fault" in results["output"]
    assert "no disk" in results["output"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_comes_back_from_gradescopes_results_as_text(tmp_path, text):
    write_outputs([hostile(text)], tmp_path)

    results = told(tmp_path / "s1" / "results.json")

    check_gradescope(results)
    assert visible(text, 1000)[:1000] in results["tests"][0]["output"]
    results["output"].encode()
    assert all(each.isprintable() or each in "\n\t" for test in results["tests"] for each in test["output"])


# --- the summary --------------------------------------------------------------------------------------------------


def test_the_summary_counts_statuses_scores_and_failed_checks(tmp_path):
    some = [
        graded("a"),
        graded("b", verdicts=[verdict(0), verdict(1)]),
        graded("c", status="infra_error", verdicts=[verdict(0, "unknown")]),
    ]
    write_outputs(some, tmp_path, similar=[pair("a", "b", 0.9), pair("a", "c", 1.0)])

    found = told(tmp_path / "summary.json")

    assert found["statuses"] == {"graded": 2, "infra_error": 1, "timeout": 0, "needs_review": 0}
    scores = found["scores"]
    assert (scores["count"], scores["lowest"], scores["highest"], scores["mean"]) == (2, 5, 10, 7.5)
    assert [band["count"] for band in scores["percent"]] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert [(check["id"], check["fail"], check["unknown"], check["pass"]) for check in found["checks"]] == [
        ("task.check1", 1, 0, 1),
        ("task.check0", 0, 1, 2),
        ("task.check2", 0, 1, 0),
    ]
    assert [(each["first"], each["second"]) for each in found["similar"]] == [("a", "c"), ("a", "b")]


def test_the_summary_page_links_each_submissions_page(tmp_path):
    write_outputs([graded("a b#?%"), graded("王伟")], tmp_path, similar=[pair("a b#?%", "王伟")])

    seen = Seen((tmp_path / "summary.html").read_text(encoding="utf-8"))

    seen.check_harmless()
    links = [attributes["href"] for tag, attributes in seen.tags if tag == "a"]
    assert links[:2] == ["./a%20b%23%3F%25/page.html", "./%E7%8E%8B%E4%BC%9F/page.html"]
    assert links[2:] == links[:2]
    assert "97%" in seen.text
    assert "they are alike." in seen.text
    assert "It says nothing about how it came about" in seen.text


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_comes_back_from_the_summary_as_text(tmp_path, text):
    write_outputs([hostile(text)], tmp_path, similar=[pair(second=text, text=text)])

    seen = Seen((tmp_path / "summary.html").read_text(encoding="utf-8"))

    seen.check_harmless()
    assert one_line(text, 300) in seen.text
    assert told(tmp_path / "summary.json")["similar"][0]["text"] == one_line(text, 1000)


def test_an_empty_batch_has_all_outputs_too(tmp_path):
    write_outputs([], tmp_path)

    assert table(tmp_path) == []
    assert suites(tmp_path) == []
    assert told(tmp_path / "summary.json")["scores"]["median"] is None
    Seen((tmp_path / "summary.html").read_text()).check_harmless()


# --- all of them --------------------------------------------------------------------------------------------------


def every_file(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_neither_order_nor_times_change_a_byte(tmp_path):
    some = [graded(name) for name in ("c", "a", "b")]
    slower = [replace(each, times={"total": 99.0}) for each in reversed(some)]
    pairs = [pair("a", "b", 0.9), pair("b", "c", 0.95)]

    write_outputs(some, tmp_path / "one", similar=pairs)
    write_outputs(slower, tmp_path / "other", similar=pairs[::-1])

    assert every_file(tmp_path / "one") == every_file(tmp_path / "other")
    assert len(every_file(tmp_path / "one")) == 7


def test_a_result_that_went_through_json_is_written_the_same(tmp_path):
    one = hostile(HOSTILE[0])
    write_outputs([one], tmp_path / "one")
    write_outputs([Graded.from_dict(json.loads(json.dumps(one.to_dict())))], tmp_path / "other")

    assert every_file(tmp_path / "one") == every_file(tmp_path / "other")


def test_ten_thousand_verdicts_are_written(tmp_path):
    many = graded(verdicts=[verdict(at, "fail", HOSTILE[0]) for at in range(10_000)])

    write_outputs([many], tmp_path)

    assert len(suites(tmp_path)[0].findall("testcase")) == 10_000
    assert len(table(tmp_path)[0]) == 20_006
    assert len(told(tmp_path / "s1" / "results.json")["tests"]) == 10_000


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc", "a\0b", "grades.csv", "summary.html"])
def test_a_name_that_is_no_folder_of_its_own_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UsageError, match="folder of their own"):
        write_outputs([graded("good"), graded(name)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_submissions_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'same'"):
        write_outputs([graded("same"), graded("same")], tmp_path)


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    write_text("old", tmp_path / "file")

    with pytest.raises(UnicodeEncodeError):
        write_text("\ud800", tmp_path / "file")

    assert every_file(tmp_path) == {"file": b"old"}


def test_visible_text_keeps_lines_tabs_and_chinese_and_spells_out_the_rest():
    assert visible("二\u3000三\n\tx é 😀") == "二\u3000三\n\tx é 😀"
    assert visible("a\r\nb\rc") == "a\nb\\rc"
    assert visible("\x1b[0m\u202e\ud800\ufeff") == "\\x1b[0m\\u202e\\ud800\\ufeff"
    assert visible("x" * 12, 10) == "x" * 10 + "… (2 more characters)"
    assert visible(None) == ""
