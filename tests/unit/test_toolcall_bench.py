"""The tool-call bench: what counts as right, what as a false call, and how the shares are counted."""

from __future__ import annotations

import argparse
import json

import pytest

from bench.toolcall_cases import Case, ExpectedCall, Parameter, ToolSpec, held_out_cases
from bench.toolcalls import Config, Share, config_list, print_table, sampled_shares, score, shares, task_of
from lab3.chat import RawCall
from lab3.funcall import Round, ToolRun, add, mul, run_call

TALLY = ToolSpec("tally", "Adds two numbers.", (Parameter("u"), Parameter("v")), "add")
SCALE = ToolSpec("scale_by", "Multiplies two numbers.", (Parameter("p"), Parameter("q")), "mul")
WEATHER = ToolSpec("get_weather", "Weather.", (Parameter("city", "string"),))
TWO_STEP = Case(
    *("0001", "two_step", "en", "expression", "(3+5)*2 = ?", (SCALE, WEATHER, TALLY)),
    (ExpectedCall("tally", {"u": 3, "v": 5}), ExpectedCall("scale_by", {"p": 8, "q": 2})),
    16,
)
SINGLE = Case(*("0002", "single", "zh", "plain", "3 加 5", (TALLY,), (ExpectedCall("tally", {"u": 3, "v": 5}),), 8))
CHAT = Case("0003", "none", "en", "chat", "Hello!", (TALLY,))

RIGHT = [("tally", {"u": 3, "v": 5}), ("scale_by", {"p": 8, "q": 2})]


def scored(case, calls, answer="", *, names="held-out", outcome="answered"):
    """The score of a transcript: one call a round, then the answer."""
    task = task_of(case, names)
    functions = {tool.__name__: tool for tool in task.tools}
    made = [run_call(RawCall(None, name, json.dumps(given)), functions, call_id="c") for name, given in calls]
    rounds = [Round(1, "auto", "", each, None, None, 0.0) for each in [*((call,) for call in made), ()]]
    return score(task, ToolRun(outcome, answer, tuple(rounds), (), "m"))


def verdict(*arguments, **options):
    found = scored(*arguments, **options)
    return found.first_call, found.right_calls, found.right_answer, found.whole


# --- one transcript -----------------------------------------------------------------------------------------------


def test_all_right():
    found = scored(TWO_STEP, RIGHT, "The result is 16.")

    assert (found.first_call, found.right_calls, found.right_answer, found.whole) == (True, True, True, True)
    assert not found.missed


@pytest.mark.parametrize(
    ("calls", "answer", "expected"),
    [
        pytest.param(RIGHT[::-1], "16", (False, False, True, False), id="wrong order"),
        pytest.param([("scale_by", {"p": 3, "q": 5}), RIGHT[1]], "16", (False, False, True, False), id="wrong name"),
        pytest.param([*RIGHT, RIGHT[0]], "16", (True, False, True, False), id="extra call"),
        pytest.param(RIGHT[:1], "16", (True, False, True, False), id="a call too few"),
        pytest.param(RIGHT, "It is 160.", (True, True, False, False), id="160 for 16"),
        pytest.param(RIGHT, "", (True, True, False, False), id="no answer"),
        pytest.param([], "16", (False, False, True, False), id="no call"),
        pytest.param([("tally", {"u": 5, "v": 3}), RIGHT[1]], "16", (False, False, True, False), id="swapped"),
        pytest.param([("tally", {"u": "3", "v": 5}), RIGHT[1]], "16", (False, False, True, False), id="a string"),
        pytest.param([("tally", {"u": 3}), RIGHT[1]], "16", (False, False, True, False), id="an argument too few"),
        pytest.param([("tally", {"u": 3.0, "v": 5}), RIGHT[1]], "16", (True, True, True, True), id="3.0 is 3"),
        pytest.param([("add", {"a": 3, "b": 5}), RIGHT[1]], "16", (False, False, True, False), id="no such tool"),
    ],
)
def test_what_is_wrong(calls, answer, expected):
    assert verdict(TWO_STEP, calls, answer) == expected


def test_true_is_not_one():
    case = Case("0", "single", "en", "plain", "1 + 5", (TALLY,), (ExpectedCall("tally", {"u": 1, "v": 5}),), 6)

    assert verdict(case, [("tally", {"u": True, "v": 5})], "6") == (False, False, True, False)


def test_a_false_call_is_a_miss_and_silence_is_not():
    assert scored(CHAT, [("tally", {"u": 1, "v": 2})], "3").missed
    assert scored(CHAT, [("nonsense", {})], "", outcome="no_valid_call").missed
    assert not scored(CHAT, [], "Hello, 3 times!").missed


def test_the_labs_functions_take_the_places_of_the_tools():
    task = task_of(TWO_STEP, "lab")

    assert [tool.__name__ for tool in task.tools] == ["mul", "get_weather", "add"]
    assert (task.tools[0], task.tools[2]) == (mul, add)
    assert task.expected == (ExpectedCall("add", {"a": 3, "b": 5}), ExpectedCall("mul", {"a": 8, "b": 2}))
    assert scored(TWO_STEP, [("add", {"a": 3, "b": 5}), ("mul", {"a": 8, "b": 2})], "16", names="lab").whole


@pytest.mark.parametrize("names", ["held-out", "lab"])
def test_the_expected_transcript_of_every_case_is_all_right(names):
    for case in held_out_cases(60):
        task = task_of(case, names)
        found = scored(case, [(call.name, call.arguments) for call in task.expected], f"{case.answer}", names=names)
        assert not found.missed, found


# --- shares -------------------------------------------------------------------------------------------------------


def test_shares_are_counted_over_the_cases_they_are_about():
    scores = [
        scored(TWO_STEP, RIGHT, "16"),
        scored(TWO_STEP, RIGHT[:1], "16"),
        scored(SINGLE, [("tally", {"u": 3, "v": 5})], "8"),
        scored(SINGLE, [], "8"),
        scored(CHAT, [], "Hi"),
        scored(CHAT, [("tally", {"u": 1, "v": 2})], "3"),
    ]

    assert shares(scores) == {
        "first call": Share(3, 4),
        "first call, single": Share(1, 2),
        "first call, two_step": Share(2, 2),
        "first call, en": Share(2, 2),
        "first call, zh": Share(1, 2),
        "first call, expression": Share(2, 2),
        "first call, plain": Share(1, 2),
        "whole task, single": Share(1, 2),
        "whole task, two_step": Share(1, 2),
        "false calls": Share(1, 2),
        "false calls, chat": Share(1, 2),
    }
    assert sampled_shares(scores[:4]) == {"sampled: first call": Share(3, 4), "sampled: whole task": Share(2, 4)}


def test_a_share_reads_as_count_and_percent():
    assert [str(Share(3, 8)), str(Share(0, 0))] == ["3/8 37.5%", "-"]


def test_the_table_has_a_column_for_each_configuration_and_lists_the_misses(capsys):
    miss = scored(TWO_STEP, RIGHT[:1], "It is 16").to_dict()
    rows = {"first call": {"count": 1, "of": 1}}
    more = {"sampled: first call": {"count": 2, "of": 5}}
    configs = {
        "fp16-kv16": {"rows": rows, "misses": []},
        "w4a16-kv4": {"rows": rows | more, "misses": [miss]},
    }

    print_table({"model": "m", "cases": 1, "names": "lab", "configs": configs})

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["fp16-kv16", "w4a16-kv4"]
    assert lines[2].split() == ["first", "call", "1/1", "100.0%", "1/1", "100.0%"]
    assert lines[3].split() == ["sampled:", "first", "call", "-", "2/5", "40.0%"]
    assert lines[5] == "w4a16-kv4 0001 (expression): (3+5)*2 = ?"
    assert lines[6] == '  expected tally({"u": 3, "v": 5}); scale_by({"p": 8, "q": 2}) → 16'
    assert lines[7] == '  got      tally({"u": 3, "v": 5}), "It is 16" (answered)'


def test_configurations_are_read_or_refused():
    assert config_list("fp16-kv16, bf16-kv8,w4a16-kv4") == [Config("fp16", 16), Config("bf16", 8), Config("w4a16", 4)]
    for wrong in ("", "fp16", "fp16-kv5", "int8-kv4", "fp16-kv16,"):
        with pytest.raises(argparse.ArgumentTypeError):
            config_list(wrong)
