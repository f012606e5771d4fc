"""Ten thousand answers that a model or a broken server might send, through the parser and the tool loop."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab3.funcall import run_tools
from lab3.tool_schema import tool_schema
from tests.unit.test_funcall import ARGUMENTS, JSON_VALUES

# One draw each, so that ten thousand answers take seconds; anything else that JSON can hold comes now and then.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 3, 10**30, -0.0, 0.5, 1e308, math.nan, math.inf),
    *("", "3", "add", "assistant", "stop", "null", "{}", '{"a": 3, "b": 5}', "\ud800", "\x00", "é" * 3, "加"),
    *([], [[]], [None], [3, 5], {}, {"a": 3}, {"a": {"b": []}}, {"name": "add"}, {"a": 3, "b": "5"}, {"": None}),
]
ANYTHING = st.one_of(*[st.sampled_from(ODD)] * 6, JSON_VALUES)
NAMES = st.sampled_from(["add", "mul", "sub", "eval", "__import__", "add.__globals__", ""])
NUMBER = st.integers() | st.floats()
GOOD = st.fixed_dictionaries({"a": st.integers(), "b": NUMBER}).map(json.dumps)
WRONG = st.fixed_dictionaries({"a": ANYTHING}, optional={"b": ANYTHING, "c": ANYTHING}).map(json.dumps)
TOLD = st.one_of(GOOD, GOOD, WRONG, ANYTHING, ANYTHING.map(json.dumps), ARGUMENTS)
KNOWN = st.fixed_dictionaries({"name": st.sampled_from(["add", "mul"]), "arguments": TOLD})
FUNCTION = st.one_of(KNOWN, KNOWN, st.fixed_dictionaries({}, optional={"name": NAMES | ANYTHING, "arguments": TOLD}))
CALL = st.fixed_dictionaries({}, optional={"id": ANYTHING, "type": ANYTHING, "function": FUNCTION | ANYTHING})
SOUND = st.fixed_dictionaries({"function": KNOWN}, optional={"id": ANYTHING, "type": ANYTHING})
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant") | ANYTHING,
        "content": st.text() | ANYTHING,
        "tool_calls": st.one_of(
            st.lists(st.one_of(SOUND, SOUND, CALL, ANYTHING), max_size=2), st.lists(SOUND, max_size=2), ANYTHING
        ),
    },
)
CHOICE = st.fixed_dictionaries({"message": MESSAGE}, optional={"finish_reason": ANYTHING})
ANSWER = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, min_size=1, max_size=2)},
    optional={"usage": ANYTHING, "model": ANYTHING, "id": ANYTHING},
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=5) | ANYTHING,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {}, optional={"index": st.integers(0, 2) | ANYTHING, "id": ANYTHING, "function": FUNCTION}
            ),
            max_size=2,
        ),
    },
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": DELTA}, optional={"finish_reason": ANYTHING}), max_size=1)}
)
END: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


class Chunks(list):  # type: ignore[type-arg]
    def close(self) -> None:
        pass


RAN: list[tuple[str, Any, Any]] = []


def add(a: int | float, b: int | float) -> int | float:
    RAN.append(("add", a, b))
    return a + b


def mul(a: int | float, b: int | float) -> int | float:
    RAN.append(("mul", a, b))
    return a * b


SCHEMAS = {function: tool_schema(function) for function in (add, mul)}  # once: they are no part of what is tried here


def loop(answers: list[Any], *, stream: bool) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """What `run_tools` makes of the answers (then the model is silent), and the functions that were really run."""
    RAN.clear()
    queue = iter(answers)

    def create(**body: Any) -> Any:
        json.dumps(body["messages"], allow_nan=False, ensure_ascii=False).encode()  # what goes back can be sent
        if stream:
            return Chunks([*next(queue, []), END])
        return next(queue, {"choices": [{"message": {"content": "done"}, "finish_reason": "stop"}]})

    @contextmanager
    def client(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)), base_url="fake")

    with patch("lab3.funcall.open_client", client), patch("lab3.funcall.tool_schema", SCHEMAS.__getitem__):
        return run_tools("3+5?", [add, mul], base_url="http://fake", model="m", stream=stream), [*RAN]


def check(run: Any, ran: list[tuple[str, Any, Any]]) -> None:
    good = [call for call in run.calls if call.outcome == "ok"]
    called = [(call.name, call.arguments["a"], call.arguments["b"]) for call in good]
    assert [each for each in ran if each in called] == called
    for name, a, b in ran:
        assert name in ("add", "mul")
        assert all(type(each) in (int, float) and math.isfinite(each) for each in (a, b))
    assert len({call.id for call in run.calls}) == len(run.calls)
    json.dumps(run.to_dict(), ensure_ascii=False).encode()


OPTIONS: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.parametrize(
    ("answer", "stream", "cases"),
    [(ANSWER, False, 7_000), (st.lists(CHUNK, max_size=3), True, 3_000)],
    ids=["whole", "streamed"],
)
def test_whatever_comes_ends_in_an_outcome_and_runs_only_what_was_given(answer: Any, stream: bool, cases: int):
    outcomes: Counter[str] = Counter()

    @settings(max_examples=cases, **OPTIONS)
    @given(answers=st.lists(answer, min_size=1, max_size=2))
    def fuzz(answers: list[Any]) -> None:
        run, ran = loop(answers, stream=stream)
        check(run, ran)
        outcomes.update(call.outcome for call in run.calls)

    fuzz()
    seen = {
        each: outcomes[each] for each in ("ok", "not_json", "not_an_object", "unknown_function", "invalid_arguments")
    }
    assert min(seen.values()) >= 20, outcomes
