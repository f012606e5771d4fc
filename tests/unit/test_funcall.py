"""The model calls `add` and `mul`: the loop, and what becomes of every malformed call."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab3.chat import RawCall
from lab3.errors import InfraError, UsageError
from lab3.funcall import add, mul, run_call, run_tools, tool_schema
from tests.fake_openai import USAGE_CHUNK, Answer, as_json, call, completion, delta, fake_openai, sse

QUESTION = "Compute (3+5)*2"


@pytest.fixture
def server():
    with fake_openai() as fake:
        yield fake


def ask(server, *tools, **options):
    return run_tools(QUESTION, tools or (add, mul), base_url=server.url, model="m", **options)


def outcome_of(arguments: Any, *, name: str = "add", tools=(add, mul)):
    return run_call(RawCall(None, name, arguments), {tool.__name__: tool for tool in tools}, call_id="c")


def deep(levels: int) -> str:
    return '{"a": ' + "[" * levels + "]" * levels + ', "b": 1}'


# --- the loop -----------------------------------------------------------------------------------------------------


def test_the_lab_adds_then_multiplies_then_answers(server):
    server.will(
        completion(None, tool_calls=[call("add", '{"a": 3, "b": 5}', id="x")]),
        completion("so 8", tool_calls=[call("mul", '{"a": 8, "b": 2}', id="y")]),
        completion("It is 16."),
    )

    run = ask(server)

    assert run.outcome == "answered"
    assert run.answer == "It is 16."
    assert [(c.name, c.arguments, c.result) for c in run.calls] == [
        ("add", {"a": 3, "b": 5}, 8),
        ("mul", {"a": 8, "b": 2}, 16),
    ]
    assert [str(c.result) for c in run.calls] == ["8", "16"], "whole numbers, as the lab prints them"
    assert [r.sent_messages for r in run.rounds] == [1, 3, 5]
    assert json.loads(json.dumps(run.to_dict()))["calls"][1]["result"] == 16


def test_calls_and_results_go_back_as_the_openai_api_has_them(server):
    server.will(completion("", tool_calls=[call("add", '{"a": 3, "b": 5}', id="x")]), completion("8"))

    ask(server)

    assert server.bodies[1]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call("add", '{"a": 3, "b": 5}', id="x")]},
        {"role": "tool", "tool_call_id": "x", "content": "8"},
    ]


def test_calls_and_results_go_back_as_internlm_was_trained(server):
    server.will(completion("I add. ", tool_calls=[call("add", '{"a": 3, "b": 5}')]), completion("8"))

    ask(server, style="environment")

    assert server.bodies[1]["messages"][1:] == [
        {
            "role": "assistant",
            "content": "I add. <|action_start|><|plugin|>\n"
            '{"name": "add", "parameters": {"a": 3, "b": 5}}<|action_end|>',
        },
        {"role": "environment", "name": "plugin", "content": "8"},
    ]


def test_parallel_calls_are_each_answered(server):
    both = [call("add", '{"a": 1, "b": 2}', id="x"), call("mul", '{"a": 3, "b": 4}', id="y")]
    server.will(completion(tool_calls=both), completion("3 and 12"))

    run = ask(server)

    assert [c.result for c in run.rounds[0].calls] == [3, 12]
    assert [(m["tool_call_id"], m["content"]) for m in server.bodies[1]["messages"][2:]] == [("x", "3"), ("y", "12")]


@pytest.mark.parametrize("ids", [(None, None), ("", ""), ("same", "same"), (7, 7), ("lab3_call_1", None)])
def test_missing_and_double_ids_are_told_apart(server, ids):
    server.will(completion(tool_calls=[call("add", '{"a": 1, "b": 2}', id=i) for i in ids]), completion("3"))

    run = ask(server)

    echoed = server.bodies[1]["messages"]
    assert len({c.id for c in run.calls}) == 2
    assert [c["id"] for c in echoed[1]["tool_calls"]] == [m["tool_call_id"] for m in echoed[2:]]
    assert [c.outcome for c in run.calls] == ["ok", "ok"]


def test_streamed_deltas_of_two_calls_are_put_together_by_index(server):
    def part(index, **function):
        id = f"id{index}" if "name" in function else None
        return delta(tool_calls=[{"index": index, "id": id, "function": function}])

    server.will(
        sse(
            part(0, name="add"),
            part(1, name="mul"),
            part(1, arguments='{"a": 8,'),
            part(0, arguments='{"a": 3, '),
            part(0, arguments='"b": 5}'),
            part(1, arguments=' "b": 2}'),
            delta("tool_calls"),
            USAGE_CHUNK,
        ),
        sse(delta(content="8, "), delta(content="16"), delta("stop")),
    )

    run = ask(server, stream=True)

    assert [(c.id, c.name, c.result) for c in run.calls] == [("id0", "add", 8), ("id1", "mul", 16)]
    assert run.rounds[0].usage.total_tokens == 10
    assert run.answer == "8, 16"


def test_streamed_deltas_without_index_continue_the_call_before(server):
    server.will(
        sse(
            delta(tool_calls=[{"id": "x", "function": {"name": "add", "arguments": '{"a": 1'}}]),
            delta(tool_calls=[{"function": {"arguments": ', "b": 2}'}}]),
            delta(tool_calls=[{"id": "y", "function": {"name": "mul", "arguments": '{"a": 3, "b": 4}'}}]),
            delta("tool_calls"),
        ),
        sse(delta(content="ok"), delta("stop")),
    )

    assert [c.result for c in ask(server, stream=True).calls] == [3, 12]


NAMED_ADD = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", ["auto", "auto", "auto"]),
        ("required", ["required", "auto", "auto"]),
        ("add", [NAMED_ADD, "auto", "auto"]),
        (("required", "required", "none"), ["required", "required", "none"]),
        (("required",), ["required", "required", "required"]),
    ],
)
def test_a_forced_call_leaves_the_model_room_to_answer(server, choice, sent):
    calling = completion(tool_calls=[call("add", '{"a": 1, "b": 2}')])
    server.will(calling, calling, completion("3"))

    ask(server, tool_choice=choice)

    assert [body["tool_choice"] for body in server.bodies] == sent
    assert all(len(body["tools"]) == 2 for body in server.bodies)


def test_a_model_that_never_stops_calling_is_stopped(server):
    server.will(*[completion(tool_calls=[call("add", '{"a": 1, "b": 2}')])] * 9)

    run = ask(server, max_rounds=3)

    assert (run.outcome, run.answer, len(run.rounds), len(server.bodies)) == ("max_rounds", "", 3, 3)


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([completion("16, I am sure.")], "no_call"),
        ([completion("  ")], "empty_answer"),
        ([completion(None)], "empty_answer"),
        ([completion(tool_calls=[call("add", "nonsense")]), completion("16")], "no_valid_call"),
        ([as_json({"choices": []})], "malformed"),
        ([as_json({"choices": [{"message": {"tool_calls": "add(3, 5)"}}]})], "malformed"),
        ([Answer((b"<html>",))], "malformed"),
        ([completion(tool_calls=[call("add", '{"a": 1, "b": 2}')]), as_json([])], "malformed"),
    ],
)
def test_how_a_run_ended_is_named(server, answers, outcome):
    server.will(*answers)

    run = ask(server)

    assert run.outcome == outcome
    assert bool(run.error) == (outcome == "malformed")


def test_a_malformed_end_keeps_the_rounds_before_it(server):
    server.will(completion(tool_calls=[call("add", '{"a": 1, "b": 2}')]), as_json([]))

    assert ask(server).calls[0].result == 3


def test_the_model_is_told_its_mistake_and_may_mend_it(server):
    server.will(
        completion(tool_calls=[call("add", '{"a": 3, "b": ')]),
        completion(tool_calls=[call("add", '{"a": 3, "b": 5}')]),
        completion("8"),
    )

    run = ask(server)

    assert [c.outcome for c in run.calls] == ["not_json", "ok"]
    assert "not JSON" in json.loads(server.bodies[1]["messages"][-1]["content"])["error"]
    echoed = server.bodies[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(echoed) == {"malformed": '{"a": 3, "b": '}, "LMDeploy refuses an echo that is not JSON"


def test_a_server_that_breaks_is_not_taken_for_a_model_that_cannot_call(server):
    server.will(as_json({"message": "engine died"}, status=500))

    with pytest.raises(InfraError, match="engine died"):
        ask(server)


def test_a_server_without_tool_parser_is_said_to_refuse(server):
    server.will(as_json({"message": "Please launch the api_server with --tool-call-parser"}, status=400))

    with pytest.raises(UsageError, match="--tool-call-parser"):
        ask(server)


@pytest.mark.parametrize("options", [{"tool_choice": "sub"}, {"tool_choice": ()}, {"max_rounds": 0}])
def test_what_cannot_be_asked_is_refused_before_asking(server, options):
    with pytest.raises(UsageError):
        ask(server, **options)

    assert not server.requests


# --- one call -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "outcome", "why"),
    [
        ("", "not_json", "not JSON"),
        ("3, 5", "not_json", "not JSON"),
        ("{'a': 3, 'b': 5}", "not_json", "not JSON"),
        ('{"a": 3, "b": 5', "not_json", "not JSON"),
        ('{"a": 3, "b": 5} and', "not_json", "not JSON"),
        ('{"a": NaN, "b": 5}', "not_json", "NaN"),
        ('{"a": 3, "b": -Infinity}', "not_json", "-Infinity"),
        ('{"a": "\\ud800", "b": 5}', "not_json", "Unicode"),
        (None, "not_json", "NoneType"),
        ({"a": 3, "b": 5}, "not_json", "dict"),
        ('"{\\"a\\": 3, \\"b\\": 5}"', "not_an_object", "a string that holds JSON"),
        ("[3, 5]", "not_an_object", "list"),
        ("null", "not_an_object", "NoneType"),
        ("8", "not_an_object", "int"),
        ("{}", "invalid_arguments", "'a' is a required property"),
        ('{"a": 3}', "invalid_arguments", "'b' is a required property"),
        ('{"a": 3, "b": 5, "c": 1}', "invalid_arguments", "'c' was unexpected"),
        ('{"a": "3", "b": 5}', "invalid_arguments", "'3' is not of type 'number'"),
        ('{"a": true, "b": 5}', "invalid_arguments", "True is not of type 'number'"),
        ('{"a": null, "b": 5}', "invalid_arguments", "None is not of type 'number'"),
        ('{"a": 3, "a": 4, "b": 5}', "invalid_arguments", "twice"),
        ('{"a": 1e999, "b": 5}', "invalid_arguments", "too large"),
        ('{"a": ' + "9" * 5000 + ', "b": 5}', "invalid_arguments", "too large"),
        (deep(80), "invalid_arguments", "too deep"),
        (deep(900), "invalid_arguments", "too deep"),
        (deep(100_000), "invalid_arguments", "too deep"),
    ],
)
def test_arguments_that_do_not_fit_are_named_and_not_run(arguments, outcome, why):
    made = outcome_of(arguments)

    assert made.outcome == outcome
    assert why in made.error
    assert made.result is None


@pytest.mark.parametrize("name", ["sub", "", "ADD", "__import__", "eval", "add.__globals__", "os.system"])
def test_only_the_given_functions_can_be_called(name):
    made = outcome_of('{"a": 3, "b": 5}', name=name)

    assert made.outcome == "unknown_function"
    assert "add, mul" in made.error


def test_arguments_that_are_code_stay_text():
    made = outcome_of('{"a": "__import__(\'os\').getpid()", "b": 5}')

    assert made.outcome == "invalid_arguments"


def test_an_int_parameter_takes_no_float():
    def repeat(times: int) -> str:
        return "x" * times

    assert outcome_of('{"times": 3}', name="repeat", tools=[repeat]).result == "xxx"
    assert outcome_of('{"times": 3.0}', name="repeat", tools=[repeat]).outcome == "invalid_arguments"
    assert outcome_of('{"times": true}', name="repeat", tools=[repeat]).outcome == "invalid_arguments"


def divide(a: float, b: float) -> float:
    return a / b


def as_set(a: float, b: float) -> Any:
    return {a, b}


def as_nan(a: float, b: float) -> Any:
    return [math.nan]


def as_itself(a: float, b: float) -> Any:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def endless(a: float, b: float) -> Any:
    return endless(a, b)


@pytest.mark.parametrize("tool", [divide, as_set, as_nan, as_itself, endless])
def test_a_function_that_fails_is_an_outcome(tool):
    made = outcome_of('{"a": 1, "b": 0}', name=tool.__name__, tools=[tool])

    assert made.outcome == "raised"
    assert made.error.startswith(tool.__name__)


def test_numbers_beyond_what_a_float_or_a_text_can_hold_are_an_outcome():
    huge = "9" * 4000

    assert outcome_of(f'{{"a": {huge}, "b": {huge}}}', name="mul").outcome == "raised"
    assert outcome_of(f'{{"a": {huge}, "b": 0.5}}', name="mul").outcome == "raised"
    assert outcome_of('{"a": 1e308, "b": 10}', name="mul").outcome == "raised"


ODDITIES = st.sampled_from(['"', "\\", "{", "}", "[", "]", ":", ",", "a", "b", "1", "e", "NaN", "-", "null", "\\ud800"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = (
    st.text()
    | st.lists(ODDITIES).map("".join)
    | JSON_VALUES.map(json.dumps)
    | JSON_VALUES.map(json.dumps).map(json.dumps)
    | JSON_VALUES
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(["add", "mul", "sub", "", "eval"]) | st.text(max_size=8), arguments=ARGUMENTS)
def test_whatever_the_model_writes_ends_in_an_outcome_and_runs_nothing_else(name, arguments):
    ran: list[tuple[str, Any, Any]] = []

    def add(a: int | float, b: int | float) -> int | float:
        ran.append(("add", a, b))
        return 0

    def mul(a: int | float, b: int | float) -> int | float:
        ran.append(("mul", a, b))
        return 0

    made = outcome_of(arguments, name=name, tools=[add, mul])

    assert (made.outcome == "ok") == bool(ran)
    if ran:
        assert ran == [(name, made.arguments["a"], made.arguments["b"])]
        assert all(type(each) in (int, float) and math.isfinite(each) for each in ran[0][1:])
        assert json.loads(arguments) == made.arguments
    else:
        made.error.encode()


# --- the schema ---------------------------------------------------------------------------------------------------


def test_the_labs_add_is_described_as_the_tutorial_describes_it():
    assert tool_schema(add) == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers and return their sum.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "number", "description": "The first number."},
                    "b": {"type": "number", "description": "The second number."},
                },
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }


def test_types_and_defaults_become_schema():
    def book(
        title: str,
        pages: int,
        *,
        kind: Literal["novel", "poem"] = "novel",
        price: Optional[float] = None,  # noqa: UP045
        tags: list[str] = [],  # noqa: B006
        new: bool = True,
        schema: int | float | None = None,
    ) -> None:
        """Book
        it.

        :param title: what is on
            the cover
        :param int pages: how many
        :returns: nothing
        """

    function = tool_schema(book)["function"]
    properties = function["parameters"]["properties"]

    assert function["description"] == "Book it."
    assert function["parameters"]["required"] == ["title", "pages"]
    assert properties["title"] == {"type": "string", "description": "what is on the cover"}
    assert properties["pages"] == {"type": "integer", "description": "how many"}
    assert properties["kind"] == {"type": "string", "enum": ["novel", "poem"], "default": "novel"}
    assert properties["price"] == {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}
    assert properties["tags"] == {"type": "array", "items": {"type": "string"}, "default": []}
    assert properties["new"] == {"type": "boolean", "default": True}
    assert properties["schema"] == {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}


@dataclass
class Book:
    title: str
    pages: int | float = 1


def test_a_parameter_that_is_an_object_keeps_its_fields_names():
    def lend(book: Book, to: dict[str, str] = {"title": "Dr"}) -> None:  # noqa: B006
        """Lend it."""

    parameters = tool_schema(lend)["function"]["parameters"]

    assert parameters["properties"]["book"] == {"$ref": "#/$defs/Book"}
    assert parameters["$defs"]["Book"]["properties"]["title"] == {"type": "string"}
    assert parameters["$defs"]["Book"]["properties"]["pages"] == {"type": "number", "default": 1}
    assert parameters["properties"]["to"]["default"] == {"title": "Dr"}


def test_google_descriptions_may_go_on_over_lines():
    def f(a: int, b: int) -> int:
        """Do it.

        Args:
            a (int): one
                note: still a
            b: two

        Returns:
            a: not a parameter
        """
        return a + b

    properties = tool_schema(f)["function"]["parameters"]["properties"]

    assert [properties[name]["description"] for name in "ab"] == ["one note: still a", "two"]


def star(*numbers: int) -> None: ...
def stars(**numbers: int) -> None: ...
def bare(a) -> None: ...
def by_position(a: int, /) -> None: ...
def strange(a: type(...)) -> None: ...
def unknown(a: NoSuchType) -> None: ...  # noqa: F821


@pytest.mark.parametrize("function", [star, stars, bare, by_position, strange, unknown])
def test_what_no_model_can_call_is_refused_with_its_name(function):
    with pytest.raises(UsageError, match=f"{function.__name__} cannot be a tool"):
        tool_schema(function)


def test_a_function_without_parameters_or_docstring_is_a_tool():
    def now() -> int:
        return 1

    assert tool_schema(now)["function"] == {
        "name": "now",
        "parameters": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
    }
    assert outcome_of("{}", name="now", tools=[now]).result == 1
