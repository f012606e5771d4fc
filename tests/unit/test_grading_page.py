"""The page of a submission: what it tells, and that nothing of a hostile student is more than text in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab3.grading.export_text import visible
from lab3.grading.page import page, write_page
from lab3.grading.results import Graded
from tests.unit.test_exporters import HOSTILE, Seen, graded, verdict


def call(number: int, turn: int, *, text: str = "add", result: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "number": number,
        "turn": turn,
        "name": text,
        "arguments_json": '{"a": 3, "b": 5}',
        "outcome": "ok",
        "computes": 8.0,
        "result": result,
    }


def told_back(turn: int, content: str = "8", **more: Any) -> dict[str, Any]:
    return {"turn": turn, "role": "environment", "content": content, "by_id": None, "right": True} | more


def question(
    *, text: str = "Compute (3+5)*2", turns: Any = (1, 2), calls: Any = (), said: Any = ("", "It is 16.")
) -> dict:
    return {"text": text, "turns": turns, "tools": ["add", "mul"], "calls": calls, "said": said, "answer": said[-1]}


def ran(*questions: dict[str, Any], **more: Any) -> dict[str, Any]:
    wire = {"questions": questions, "turns": (), "unasked_results": (), "invented": (), "printed": (), "problems": ()}
    wire |= more.pop("wire", {})
    run = {"role": "tools", "path": "func.py", "attempt": 1, "outcome": "exited", "returncode": 0, "asked": 2}
    return run | {"stdout": "16", "stderr": "", "wire": wire} | more


def collected(text: str = "serve.sh") -> dict[str, Any]:
    found = {"path": text, "role": "serve", "why": text, "by": "content", "others": [text]}
    problem = {
        "kind": "dash",
        "severity": "broken",
        "what": text,
        "source": text,
        "line": 3,
        "text": text,
        "instead": text,
    }
    command = {"text": text, "source": text, "line": 3, "model": text, "kv_bits": 4, "cache_ratio": 0.4}
    command |= {"host": text, "port": 23333, "works": False}
    return {"student": text, "found": [found], "serve": command, "problems": [problem]}


def hostile(text: str) -> Graded:
    """A result in which every text that a student or a model can choose is this one."""
    asked = question(text=text, calls=[call(1, 1, text=text, result=told_back(2, text))], said=(text, text))
    trouble = {"kind": "server_broke", "fault": "server", "text": text}
    wire = {
        "turns": [{"number": 1, "problems": [trouble]}],
        "unasked_results": [told_back(1, text, role=text)],
        "invented": [{"turn": 1, "kind": "text", "content": text}],
        "printed": [{"value": 17.0, "question": 0, "printed": True, "called": False, "said": False}],
        "problems": [trouble],
    }
    run = ran(asked, wire=wire, path=text, stdout=text, stderr=text)
    verdicts = [verdict(0, "fail", text), verdict(1, "unknown", text), verdict(2, "pass", text)]
    more = {"collected": collected(text), "runs": (run,), "key": text, "status": "needs_review"}
    return graded(text=text, verdicts=verdicts, **more)


def text_of(one: Graded) -> str:
    seen = Seen(page(one))
    seen.check_harmless()
    return " ".join(" ".join(seen.parts).split())


def in_order(text: str, *parts: str) -> bool:
    at = 0
    for part in parts:
        if (at := text.find(part, at)) < 0:
            return False
        at += len(part)
    return True


# --- what it tells ------------------------------------------------------------------------------------------------


def test_verdicts_come_with_points_reasons_and_chinese_titles():
    text = text_of(graded())

    assert in_order(text, "5 of 15", "5 of 15 points")
    assert in_order(text, "Task 1", "passed", "A check 检查", "5 / 5", "it is so", "Task 2", "failed", "0 / 5")
    assert "not judged" in text


@pytest.mark.parametrize(
    ("whose", "words"),
    [
        ("machine", "the grading machine’s, not the student’s"),
        ("subject", "the submission’s"),
        ("kv_cache", "the KV cache’s"),
    ],
)
def test_it_is_told_whose_fault_a_failure_is(whose, words):
    blame = {"whose": whose, "kind": "x", "text": "Do that instead.", "command": "lmdeploy x", "log_tail": ["a log"]}

    text = text_of(graded(verdicts=[verdict(0, "fail", blame=blame)]))

    assert f"Whose fault: {words}. Do that instead." in text
    assert in_order(text, "To see it again: lmdeploy x", "a log")


def test_what_was_taken_for_what_and_the_problems_come_with_the_quoted_place():
    told = collected()
    told["problems"][0] |= {"what": "a space after the backslash", "text": "api_server \\ ", "instead": "\\"}

    text = text_of(graded(collected=told))

    assert in_order(text, "What was taken for what", "serve command", "serve.sh", "(by content)", "and not serve.sh")
    assert in_order(text, "a space after the backslash", "api_server \\␣", "Write \\", "serve.sh, line 3")
    assert "does not work as it is written" in text


def test_the_conversation_is_in_the_order_of_the_wire():
    one = question(calls=[call(1, 1, result=told_back(2))])

    text = text_of(graded(runs=(ran(one),)))

    assert in_order(
        text,
        "Compute (3+5)*2",
        "the model calls",
        'add({"a": 3, "b": 5})',
        "sends back, as role environment 8",
        "It is 16.",
    )
    assert "never sent back" not in text


def test_a_result_that_was_never_sent_back_is_told():
    text = text_of(graded(runs=(ran(question(calls=[call(1, 1)])),)))

    assert "its result was never sent back" in text


def test_what_the_script_made_up_is_told():
    wire = {
        "unasked_results": [told_back(1, "99")],
        "invented": [{"turn": 1, "kind": "text", "content": "I am sure"}],
        "printed": [{"value": 16.0, "question": 0, "printed": True, "called": False, "said": False}],
    }

    text = text_of(graded(runs=(ran(question(), wire=wire),)))

    assert "a result that no call asked for" in text
    assert "which it did not I am sure" in text
    assert "The script printed 16, which no call of the model computes and the model never said." in text


def test_a_printed_number_that_a_call_computes_is_no_cause_for_a_word():
    wire = {"printed": [{"value": 16.0, "question": 0, "printed": True, "called": True, "said": False}]}

    assert "The script printed" not in text_of(graded(runs=(ran(question(), wire=wire),)))


def test_the_output_is_what_the_script_claims():
    text = text_of(graded(runs=(ran(stdout="one\ntwo", stderr="Traceback", outcome="timeout", returncode=None),)))

    assert "Nothing was asked on the wire." in text
    assert in_order(text, "timeout", "Its standard output (what the script claims)", "one two", "Traceback")


def test_seconds_are_not_on_the_page():
    wire = {"turns": [{"number": 1, "seconds": 1.25, "first_byte_s": 0.5, "problems": ()}]}
    one = graded(runs=(ran(question(), wire=wire),))
    wire_of_slower = {"turns": [{"number": 1, "seconds": 9.75, "first_byte_s": 7.5, "problems": ()}]}
    slower = replace(one, times={"total": 77.0}, runs=(ran(question(), wire=wire_of_slower),))

    assert page(one) == page(slower)


def test_an_infrastructure_error_without_verdicts_has_a_page():
    text = text_of(graded(status="infra_error", reasons=("no disk",), verdicts=[]))

    assert in_order(text, "not graded: trouble with the machine", "no disk", "Nothing was judged.")


def test_a_result_that_lacks_parts_has_a_page():
    assert "func.py" in text_of(graded(runs=({"role": "tools", "path": "func.py"},), collected={"found": [{}]}))


# --- hostile text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_text_wherever_it_stands(tmp_path, text):
    write_page(hostile(text), tmp_path / "s1" / "page.html")
    harmless = Seen(page(hostile("harmless")))

    seen = Seen((tmp_path / "s1" / "page.html").read_text(encoding="utf-8"))

    seen.check_harmless()
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in harmless.tags]
    expected = visible(text)
    assert seen.text.count(expected) >= (15 if len(text) < 1000 else 3)  # some places cut a long text shorter
    assert all(each.isprintable() or each in "\n\t" for each in seen.text if ord(each) < 0x2000)
    assert not set(seen.text) & set("\u202e\u2066\u2028\u2029\ud800\uffff")


def test_a_status_cannot_be_more_than_a_word_in_an_attribute():
    odd = verdict(0, 'x" onclick="alert(1)', 'x" onclick="alert(1)')
    run = ran(outcome='x" onclick="alert(1)')

    Seen(page(graded(verdicts=[odd], runs=(run,)))).check_harmless()


def test_ten_thousand_verdicts_and_a_long_conversation_have_a_page():
    long = question(turns=range(5000), calls=[call(at, at) for at in range(5000)], said=["x"] * 5000)

    seen = Seen(page(graded(verdicts=[verdict(at, "fail", HOSTILE[0]) for at in range(10_000)], runs=(ran(long),))))

    seen.check_harmless()
    assert seen.text.count("0 / 5") == 10_000
    assert sum(tag == "li" for tag, _ in seen.tags) < 10_500
    assert "It goes on; only the beginning is shown." in seen.text


def test_of_very_many_questions_the_first_are_shown_and_the_others_counted():
    text = text_of(graded(runs=(ran(*[question(text=f"question number {at}") for at in range(300)]),)))

    assert "question number 49" in text
    assert "question number 50" not in text
    assert "and 250 more questions" in text
