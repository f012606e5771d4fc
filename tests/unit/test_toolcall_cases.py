"""The held-out set: every number is held out, every call follows the conventions, nothing comes twice."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from bench.toolcall_cases import (
    CHATS,
    DESCRIPTIONS,
    DISTRACTORS,
    EXPRESSIONS,
    LEAD_INS,
    PARAMETER_NAMES,
    PHRASES,
    REQUESTS,
    STORIES,
    TOOL_NAMES,
    UNFIT_REQUESTS,
    Parameter,
    ToolSpec,
    held_out_cases,
    solve,
)
from lab3.chat import RawCall
from lab3.funcall import run_call
from tools.number_split import is_held_out

FORBIDDEN = {
    *("add", "mul", "multiply", "plus", "sum", "product", "times"),
    *("sum_two", "add_numbers", "multiply_numbers"),
}
NUMBERS = {"a": 3, "b": 5, "c": 2, "d": 7}


@pytest.fixture(scope="module")
def cases():
    return held_out_cases()


def numbers_of(text):
    """The numbers written in a text; a minus between two operands is no sign."""
    return [ast.literal_eval(each) for each in re.findall(r"(?<![\d)])-?\d+(?:\.\d+)?|(?<=[\d)])\d+", text)]


def evaluate(node):
    """(value, steps) of a symbolic expression, left operand's steps first."""
    if isinstance(node, ast.UnaryOp):
        return -evaluate(node.operand)[0], []
    if isinstance(node, ast.Constant):
        return node.value, []
    (left, before), (right, then) = evaluate(node.left), evaluate(node.right)
    adds = isinstance(node.op, ast.Add)
    value = left + right if adds else left * right
    return value, [*before, *then, ("add" if adds else "mul", left, right)]


def operations(case):
    """The expected calls as (operation, first, second)."""
    of = {spec.name: spec.operation for spec in case.tools}
    return [(of[call.name], *call.arguments.values()) for call in case.expected]


# --- the list -----------------------------------------------------------------------------------------------------


def test_the_list_is_the_same_every_time_and_a_shorter_one_is_its_beginning(cases):
    assert len(cases) == 600
    assert held_out_cases() == cases
    assert held_out_cases(25) == cases[:25]
    assert held_out_cases(25, seed=1) != cases[:25]


def test_no_question_and_no_id_comes_twice(cases):
    assert len({case.question for case in cases}) == len({case.id for case in cases}) == len(cases)


def test_a_longer_list_than_there_are_chats_goes_on_without_repeating():
    more = held_out_cases(900)

    assert len({case.question for case in more}) == 900
    assert all(case.tools for case in more)


def test_the_shares_of_kinds_languages_and_topics(cases):
    assert Counter(case.kind for case in cases) == {"single": 270, "two_step": 120, "three_step": 48, "none": 162}
    assert Counter(case.language for case in cases) == {"en": 390, "zh": 210}
    topics = Counter((case.kind, case.topic) for case in cases)
    assert 80 <= topics["single", "word_problem"] <= 120
    assert topics["none", "chat"] == topics["none", "unfit"] == 81
    assert {topic for kind, topic in topics if kind == "two_step"} == {
        *("plain", "negative", "decimal", "word_problem", "expression")
    }


# --- numbers ------------------------------------------------------------------------------------------------------


def test_every_number_is_held_out(cases):
    for case in cases:
        results = [] if case.answer is None else [case.answer]
        arguments = [number for call in case.expected for number in call.arguments.values()]
        for number in numbers_of(case.question) + arguments + results:
            assert is_held_out(number), (case, number)


def test_every_number_is_short_and_exact(cases):
    for case in cases:
        written = numbers_of(case.question)
        assert all(re.fullmatch(r"-?\d{1,6}|-?\d{1,6}\.\d{1,3}", str(number)) for number in written), case
        if case.answer is not None:
            arguments = [number for call in case.expected for number in call.arguments.values()]
            assert all(re.fullmatch(r"-?\d{1,9}(\.\d{1,6})?", str(number)) for number in [*arguments, case.answer])


# --- calls --------------------------------------------------------------------------------------------------------


def test_a_single_calls_with_the_numbers_in_the_order_of_the_text_and_as_they_are_written(cases):
    for case in cases:
        if case.kind == "single":
            (call,) = case.expected
            assert repr(list(call.arguments.values())) == repr(numbers_of(case.question)), case


def test_a_task_has_as_many_calls_as_its_kind_says(cases):
    counts = {"single": 1, "two_step": 2, "three_step": 3, "none": 0}
    assert all(len(case.expected) == counts[case.kind] for case in cases)
    assert all((case.answer is None) == (case.kind == "none") for case in cases)


def test_an_expression_is_called_in_post_order(cases):
    found = [case for case in cases if case.topic == "expression"]
    for case in found:
        (text,) = re.findall(r"[-(\d][-\d.+*×() ]*[\d)]", case.question)
        value, steps = evaluate(ast.parse(text.replace("×", "*"), mode="eval").body)
        assert operations(case) == steps, case
        assert case.answer == value
    assert len(found) > 60


def test_the_expected_calls_run_and_lead_to_the_answer(cases):
    for case in cases:
        functions = {spec.name: spec.function() for spec in case.tools}
        results = []
        for call in case.expected:
            run = run_call(RawCall(None, call.name, repr(call.arguments).replace("'", '"')), functions, call_id="c")
            assert (run.outcome, run.arguments) == ("ok", call.arguments), case
            results.append(run.result)
        assert results[-1:] == ([] if case.answer is None else [case.answer])


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("(a+b)*c", [("add", 3, 5, 8), ("mul", 8, 2, 16)]),
        ("a*(b+c)", [("add", 5, 2, 7), ("mul", 3, 7, 21)]),
        ("a+b*c", [("mul", 5, 2, 10), ("add", 3, 10, 13)]),
        ("a+b+c", [("add", 3, 5, 8), ("add", 8, 2, 10)]),
        ("(a+b)*(c+d)", [("add", 3, 5, 8), ("add", 2, 7, 9), ("mul", 8, 9, 72)]),
        ("a*(b+c*d)", [("mul", 2, 7, 14), ("add", 5, 14, 19), ("mul", 3, 19, 57)]),
        ("a+b*c+d", [("mul", 5, 2, 10), ("add", 3, 10, 13), ("add", 13, 7, 20)]),
    ],
)
def test_steps_by_hand(expression, steps):
    assert solve(expression, NUMBERS) == steps


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("What is {a} times the sum of {b} and {c}?", "a*(b+c)"),
        ("Multiply {a} by {b} and then add {c} to the outcome.", "a*b+c"),
        ("Which number is {a} more than {b} times {c}?", "a+b*c"),
        ("先求 {a} 与 {b} 的和，再把结果乘以 {c}，最后得多少？", "(a+b)*c"),
    ],
)
def test_phrases_by_hand(text, expression):
    assert (text, expression) in PHRASES["zh" if "求" in text else "en", "two_step"]


def test_no_call_is_expected_where_no_tool_fits(cases):
    for case in cases:
        if case.topic == "unfit":
            offered = {spec.operation for spec in case.tools} - {None}
            arithmetic = {"subtract_numbers", "divide_evenly", "square_root", "remainder_of", "jian_fa", "chu_fa"}
            assert not offered or not arithmetic & {spec.name for spec in case.tools}, case


# --- tools --------------------------------------------------------------------------------------------------------


def test_tools_have_different_names_and_none_of_the_trained_ones(cases):
    for case in cases:
        names = [spec.name for spec in case.tools]
        assert len(set(names)) == len(names) >= 1
        assert not FORBIDDEN & set(names)
    assert not FORBIDDEN & {*TOOL_NAMES["add"], *TOOL_NAMES["mul"], *(spec.name for spec in DISTRACTORS)}


def test_needed_tools_are_offered_once_with_up_to_three_others(cases):
    for case in cases:
        operations_offered = [spec.operation for spec in case.tools if spec.operation]
        assert len(set(operations_offered)) == len(operations_offered)
        assert sum(spec.operation is None for spec in case.tools) <= 3
        assert {call.name for call in case.expected} <= {spec.name for spec in case.tools if spec.operation}
    order = Counter(case.tools[0].operation for case in cases if case.kind == "two_step" and len(case.tools) > 1)
    assert min(order["add"], order["mul"], order[None]) > 10, "the tools come in any order"


def test_a_tool_is_a_function_with_the_schema_that_it_says():
    spec = ToolSpec(
        "tally",
        "计算两个数的和。",
        (Parameter("v", "integer", "First value"), Parameter("u"), Parameter("s", "string")),
        "add",
    )

    assert spec.schema() == {
        "type": "function",
        "function": {
            "name": "tally",
            "description": "计算两个数的和。",
            "parameters": {
                "properties": {
                    "v": {"type": "integer", "description": "First value"},
                    "u": {"type": "number"},
                    "s": {"type": "string"},
                },
                "required": ["v", "u", "s"],
                "additionalProperties": False,
                "type": "object",
            },
        },
    }
    assert list(spec.schema()["function"]["parameters"]["properties"]) == ["v", "u", "s"]


def test_every_schema_has_the_names_types_and_descriptions_of_its_tool(cases):
    for spec in {spec for case in cases for spec in case.tools}:
        function = spec.schema()["function"]
        assert (function["name"], function["description"]) == (spec.name, spec.description)
        assert [
            Parameter(name, each["type"], each.get("description", ""))
            for name, each in function["parameters"]["properties"].items()
        ] == list(spec.parameters)


def test_tools_compute():
    pair = (Parameter("y"), Parameter("x"))

    assert ToolSpec("tally", "", pair, "add").function()(x=2, y=3) == 5
    assert ToolSpec("scale_by", "", pair, "mul").function()(x=2, y=3) == 6
    assert ToolSpec("square_root", "", pair[:1]).function()(y=4) == "no result"


# --- texts --------------------------------------------------------------------------------------------------------


def test_there_are_enough_texts_of_each_sort():
    for operation in ("add", "mul"):
        assert len(set(TOOL_NAMES[operation])) >= 14
        assert len(set(DESCRIPTIONS[operation])) >= 10
        assert len(set(STORIES["en", operation])) >= 20
        assert len(set(STORIES["zh", operation])) >= 10
        assert len(set(REQUESTS["en", operation])) >= 15
        assert len(set(REQUESTS["zh", operation])) >= 10
    assert len(set(PARAMETER_NAMES)) >= 12
    assert len({spec.name for spec in DISTRACTORS}) >= 16
    assert len(PHRASES["en", "two_step"] + PHRASES["en", "three_step"]) >= 10
    assert len(PHRASES["zh", "two_step"] + PHRASES["zh", "three_step"]) >= 6
    assert all(len(texts) >= 6 for texts in LEAD_INS.values())
    assert len({*CHATS["en"], *CHATS["zh"]}) == len(CHATS["en"] + CHATS["zh"]) >= 60


def test_number_slots_come_in_order_and_once():
    for texts in (*REQUESTS.values(), *STORIES.values()):
        assert all(re.findall(r"\{([a-d])~?\}", text) == ["a", "b"] for text in texts)
    for pairs in PHRASES.values():
        for text, expression in pairs:
            assert re.findall(r"\{([a-d])~?\}", text) == sorted(re.findall("[a-d]", expression)), text
    for expressions in EXPRESSIONS.values():
        assert all(re.findall("[a-d]", each) == sorted(re.findall("[a-d]", each)) for each in expressions)
    assert all(
        set(re.findall(r"\{([a-d])\}", text)) <= {"a", "b"} for texts in UNFIT_REQUESTS.values() for text in texts
    )


def test_slots_are_filled_everywhere(cases):
    assert not [case.question for case in cases if re.search(r"[{}~]", case.question)]
