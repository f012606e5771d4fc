"""All that the wire tells of one script, beside what it printed: who was asked, what was called for, whose trouble."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lab3.grading.wire import turns
from lab3.grading.wire_facts import WireFacts, tool_runs, wire_facts
from tests.wire_literals import (
    ADD_CALL,
    BY_THE_BOOK,
    FIRST,
    QUESTION,
    TUTORIAL,
    asked,
    assistant,
    call,
    exchange,
    said,
    user,
    wire,
)


def of(*pairs, **more) -> WireFacts:
    return wire_facts(wire(*pairs), **more)


# --- who was asked, and what was printed --------------------------------------------------------------------------


def test_what_the_tutorials_script_prints_was_called_for_although_the_model_never_said_it():
    facts = of(*TUTORIAL, output="ChatCompletion(...)\n16\n")

    (printed,) = facts.printed
    assert (printed.value, printed.printed, printed.called, printed.said) == (16, True, True, False)
    assert (facts.client_faults, facts.server_faults) == (0, 0)


def test_a_script_that_never_asked_the_model_asked_nothing():
    facts = wire_facts([exchange(method="GET", path="/v1/models", request=b"")], output="16", answer=16)

    assert (facts.asked, facts.asked_with_tools, facts.questions) == (False, False, ())
    assert facts.paths == {"GET /v1/models": 1}
    (printed,) = facts.printed
    assert (printed.printed, printed.called, printed.said) == (True, False, False)


def test_a_request_that_did_not_reach_the_server_asked_nothing():
    refused = exchange(request=asked([user("x")]), status=502, by_proxy=True, error="down", error_kind="server_down")

    facts = wire_facts([refused])

    assert (facts.asked, facts.server_faults, facts.client_faults) == (False, 1, 0)


def test_a_script_that_asked_without_tools_is_told_apart():
    facts = of((asked([user(QUESTION)], tools=()), said("It is 16.")), output="It is 16.")

    assert (facts.asked, facts.asked_with_tools) == (True, False)
    assert (facts.printed[0].printed, facts.printed[0].called, facts.printed[0].said) == (True, False, True)


def test_an_answer_that_the_script_had_by_itself_is_printed_and_neither_called_nor_said():
    facts = of((asked([user(QUESTION)]), said("I cannot compute.")), output="Final result: 16")

    (printed,) = facts.printed
    assert (printed.printed, printed.called, printed.said, printed.question) == (True, False, False, 0)


@pytest.mark.parametrize(
    ("output", "printed"),
    [
        ("16", True),
        ("result=16\n", True),
        ("答案是16。", True),
        ("16.0", True),
        ("ChatCompletion(id='16', created=1716161616, usage=CompletionUsage(completion_tokens=16))", False),
        ('{"id": "chatcmpl-16ab", "index": 16, "total_tokens": 16}', False),
        ("2026-11-16 10:16:33 a16 16b 160 1.16", False),
        ("", False),
    ],
)
def test_numbers_in_a_printed_response_are_not_taken_for_the_answer(output, printed):
    assert of(FIRST, output=output).printed[0].printed is printed


def test_a_number_that_stands_in_the_question_tells_nothing_when_it_is_printed():
    assert of((asked([user("Compute 16*1")]), said("x")), output="16").printed[0].printed is None


def test_the_kinds_of_requests_and_troubles_of_other_paths_are_counted():
    stray = exchange(2, path="/metrics?x=1", request=b"", error="no", error_kind="refused_path", by_proxy=True)

    facts = wire_facts([*wire(FIRST), stray])

    assert facts.paths == {"POST /v1/chat/completions": 1, "POST /metrics": 1}
    assert [problem.kind for problem in facts.problems] == ["refused_path"]
    assert facts.client_faults == 1


def test_each_turn_is_told_in_short():
    first = of(*BY_THE_BOOK).turns[0]

    assert (first.number, first.question, first.roles, first.calls) == (1, 0, ("user",), 1)
    assert (first.seconds, first.first_byte_s, first.finish_reason, first.problems) == (0.5, 0.25, "tool_calls", ())


def test_the_facts_are_json_ready():
    facts = of(
        FIRST, (asked([user("\ud800"), user(QUESTION)]), said("\ud800", call("add", '{"a": 1e999}'))), output="16"
    )

    assert json.loads(json.dumps(facts.to_dict(), allow_nan=False))["questions"][0]["value"] == 16


# --- in the form that the checks of task 2 read -------------------------------------------------------------------


def test_a_question_becomes_what_the_checks_read():
    (facts,) = tool_runs(turns(wire(*BY_THE_BOOK)))

    assert [(each.function, each.numbers) for each in facts.expected] == [("add", (3, 5)), ("mul", (8, 2))]
    assert [(each.name, each.outcome, each.result) for each in facts.calls] == [("add", "ok", 8), ("mul", "ok", 16)]
    assert (facts.results_returned, facts.outcome, facts.expected_answer) == (True, "answered", 16)
    assert facts.answer == "The result is 16."


def test_a_script_that_goes_on_without_a_result_returned_none():
    nudge = (asked([user(QUESTION), assistant(None, ADD_CALL), user("Well?")]), said("16"))

    assert [facts.results_returned for facts in tool_runs(turns(wire(FIRST, nudge)))] == [False]


def test_questions_without_tools_or_arithmetic_are_none_of_the_checks():
    assert (
        tool_runs(turns(wire((asked([user(QUESTION)], tools=()), said("16")), (asked([user("Hi")]), said("?"))))) == ()
    )


# --- against hostile scripts, where a search that goes back and forth would take hours --------------------------------


@pytest.mark.parametrize(
    "message",
    [
        user("(" * 100_000),
        user("1+" * 100_000),
        user("9" * 1_000_000),
        user("1-" * 100_000),
        assistant("<|action_start|><|plugin|>" * 50_000),
        {"role": "assistant", "content": "", "tool_calls": [{}] * 100_000},
        {"role": ["tool"] * 1000, "content": {"a": 1}},
        {"role": "tool", "content": "8", "tool_call_id": ["c1"]},
        {"role": "user", "content": [{"text": "8="}] * 100_000},
    ],
)
def test_a_monstrous_message_is_read_and_leaves_few_facts(message):
    facts = of(FIRST, (asked([user(QUESTION), message]), said("x")), output="x" * 1_000_000 + "7" * 1000)

    assert len(json.dumps(facts.to_dict())) < 100_000


def test_thousands_of_messages_and_hundreds_of_turns_are_read():
    many = [user("8=") for _ in range(20_000)]
    pairs = [(asked([*many[: 20 * at], user(QUESTION)]), said(None, ADD_CALL)) for at in range(200)]

    facts = wire_facts([replace(each, number=at) for at, each in enumerate(wire(*pairs), 1)])

    assert len(facts.turns) == 200
