"""The arithmetic of questions, tools and results, in the ways that students and models write it."""

from __future__ import annotations

import pytest

from lab3.grading.arithmetic import computed, numbers_of, numbers_told, operation_of, read_expression


@pytest.mark.parametrize(
    ("text", "value", "steps"),
    [
        ("Compute (3+5)*2", 16, "add 3 5, mul 8 2"),
        ("Compute (3+5)*2 = ?", 16, "add 3 5, mul 8 2"),
        ("请计算（３＋５）×２。", 16, "add 3 5, mul 8 2"),
        ("what is ( 12 + 30 ) x 2?", 84, "add 12 30, mul 42 2"),
        ("2*(3+5)", 16, "add 3 5, mul 2 8"),
        ("3 − 5", -2, "sub 3 5"),
        ("-3+5", 2, "add -3 5"),
        ("1.5*4", 6, "mul 1.5 4"),
        ("1+2+3", 6, "add 1 2, add 3 3"),
        ("1+2, then (3+5)*2", 16, "add 3 5, mul 8 2"),
        ("1+1 or 2+2", 4, "add 2 2"),
        ("2+2 (see page 7)", 4, "add 2 2"),
    ],
)
def test_an_expression_is_found_with_its_value_and_the_steps_to_it(text, value, steps):
    found = read_expression(text)

    assert found.value == value
    told = [f"{step.function} {' '.join(f'{number:g}' for number in step.numbers)}" for step in found.calls]
    assert ", ".join(told) == steps


@pytest.mark.parametrize(
    "text",
    [
        "Who are you?",
        "3+5=8",
        "3+5 = 8, now double it",
        "2**100",
        "8/2",
        "on 2026-11-25",
        "call 138-0013-8000",
        "(3+5",
        "7",
        "__import__('os')",
        "9" * 400 + "*2",
        "(" * 300 + "1+1" + ")" * 300,
        "",
    ],
)
def test_what_is_no_arithmetic_or_is_told_already_is_no_expression(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    ("name", "description", "operation"),
    [
        ("add", "", "add"),
        ("addNumbers", "", "add"),
        ("get_sum", "", "add"),
        ("multiply", "", "mul"),
        ("Mul", "", "mul"),
        ("subtract", "", "sub"),
        ("divide", "", "div"),
        ("mul", "adds two numbers", "mul"),
        ("calc", "Compute the sum of two numbers", "add"),
        ("f", "计算两个数的乘积", "mul"),
        ("f", "两数相加", "add"),
        ("calculator", "sum or product of two numbers", None),
        ("get_address", "where somebody lives", None),
        ("plugin", "", None),
    ],
)
def test_an_operation_is_known_by_the_tools_name_or_else_by_its_description(name, description, operation):
    assert operation_of(name, description) == operation


@pytest.mark.parametrize(
    ("operation", "numbers", "result"),
    [
        ("add", (3, 5), 8),
        ("add", (1, 2, 3), 6),
        ("mul", (8, 2), 16),
        ("mul", (0.1, 3), 0.1 * 3),
        ("sub", (3, 5), None),
        ("div", (3, 5), None),
        (None, (3, 5), None),
        ("add", (3,), None),
        ("add", (), None),
        ("mul", (1e14, 1e14), None),
    ],
)
def test_only_add_and_mul_are_computed(operation, numbers, result):
    assert computed(operation, numbers) == result


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ({"a": 3, "b": 5.5}, (3, 5.5)),
        ({"numbers": [3, {"x": 5}]}, (3, 5)),
        ({"a": "3", "b": True, "c": None}, ()),
        ({"a": 10**400}, ()),
        (float("nan"), ()),
        (None, ()),
    ],
)
def test_the_numbers_of_arguments_are_its_numbers_and_not_texts_that_look_like_some(value, numbers):
    assert numbers_of(value) == numbers


@pytest.mark.parametrize(
    ("content", "beside", "told"),
    [
        ("8", (3, 5), (8,)),
        ("3+5=8", (3, 5), (8,)),
        ("8 is 3+5", (3, 5), (8,)),
        ("2*1=2", (2, 1), (2,)),
        ("3-5=-2", (3, 5), (-2,)),
        ("2", (2, 1), (2,)),
        ("８", (), (8,)),
        ('{"a": 3, "b": 5, "result": 8.0}', (3, 5), (8,)),
        ("1,000", (), (1000,)),
        ("none", (3, 5), ()),
    ],
)
def test_a_text_tells_the_numbers_that_are_not_the_arguments(content, beside, told):
    assert numbers_told(content, beside=beside) == told
