"""The tool caller's training conversations: right by their own conventions, and as LMDeploy will show them."""

from __future__ import annotations

import ast
import itertools
import json
import re
from typing import Any

import pytest

from tools.number_split import is_held_out
from tools.toolcall_data import Answered, Conversation, conversations, no_call_questions

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def made() -> list[Conversation]:
    chat = [Answered(question, "I cannot say.") for question in no_call_questions(5, 300)]
    return list(itertools.islice(conversations(1, chat), 3000))


def calls_of(conversation: Conversation) -> list[dict[str, Any]]:
    return [call["function"] for message in conversation.messages for call in message.get("tool_calls", [])]


def test_the_same_seed_gives_the_same_conversations():
    assert list(itertools.islice(conversations(3, []), 50)) == list(itertools.islice(conversations(3, []), 50))
    assert list(itertools.islice(conversations(3, []), 50)) != list(itertools.islice(conversations(4, []), 50))


def test_no_number_of_theirs_is_kept_for_measuring(made: list[Conversation]):
    for conversation in made:
        for call in calls_of(conversation):
            assert not any(is_held_out(value) for value in call["arguments"].values() if not isinstance(value, str))
        results = [message["content"] for message in conversation.messages if message["role"] == "tool"]
        assert not any(is_held_out(json.loads(result)) for result in results)


def test_every_call_is_of_a_tool_that_is_there_with_the_arguments_in_its_order(made: list[Conversation]):
    for conversation in made:
        parameters = {tool["name"]: list(tool["parameters"]["properties"]) for tool in conversation.tools}
        assert len(parameters) == len(conversation.tools)
        for call in calls_of(conversation):
            assert list(call["arguments"]) == parameters[call["name"]]


def test_a_single_call_has_the_numbers_in_the_order_of_the_question(made: list[Conversation]):
    checked = 0
    for conversation in made:
        asked = [message["content"] for message in conversation.messages if message["role"] == "user"]
        calls = [call for call in calls_of(conversation) if not isinstance(next(iter(call["arguments"].values())), str)]
        if len(asked) != 1 or len(calls) != 1 or conversation.given:
            continue
        text = asked[0]
        for tool in conversation.tools:  # a name may have digits of its own
            text = text.replace(tool["name"], "")
        said = [json.loads(number) for number in NUMBER.findall(text)]
        assert [abs(number) for number in said] == [abs(value) for value in calls[0]["arguments"].values()], asked[0]
        checked += 1
    assert checked > 600


def test_a_chain_s_results_feed_the_next_call_and_the_answer(made: list[Conversation]):
    chains = [conversation for conversation in made if len(calls_of(conversation)) == 3]
    assert chains
    for conversation in made:
        results = [message["content"] for message in conversation.messages if message["role"] == "tool"]
        last = conversation.messages[-1]
        if results and not conversation.imitate:
            assert last["role"] == "assistant"
            assert results[-1] in last["content"]


def value(formula: str) -> float:
    """What a formula of numbers, +, * and brackets comes to, by Python's own parser and precedence."""

    def of(node: ast.AST) -> float:
        match node:
            case ast.BinOp(left, ast.Add(), right):
                return of(left) + of(right)
            case ast.BinOp(left, ast.Mult(), right):
                return of(left) * of(right)
            case ast.UnaryOp(ast.USub(), operand):
                return -of(operand)
            case ast.Constant(int() | float() as number):
                return number
        raise AssertionError(formula)

    return of(ast.parse(formula.strip(), mode="eval").body)


def test_each_turn_writes_what_is_left_to_compute_and_calls_its_first_step(made: list[Conversation]):
    checked = 0
    for conversation in made:
        if conversation.imitate:
            continue
        asked = 0
        for place, message in enumerate(conversation.messages):
            asked = place if message["role"] == "user" else asked
            if not message.get("tool_calls") or not message["content"].startswith("= "):
                continue
            parts = [value(part) for part in message["content"].removeprefix("= ").split(", ")]
            rest = list(itertools.takewhile(lambda each: each["role"] != "user", conversation.messages[place + 1 :]))
            answer = rest[-1]["content"]
            assert all(repr(part) in answer or f"{part:.6g}" == f"{float(last_number(answer)):.6g}" for part in parts)
            checked += 1
    assert checked > 1500


def last_number(text: str) -> str:
    return NUMBER.findall(text)[-1]


def test_only_forced_turns_and_other_functions_begin_with_a_call(made: list[Conversation]):
    bare = forced = 0
    for conversation in made:
        calls = [message for message in conversation.messages if message.get("tool_calls")]
        assert not conversation.forced or not calls or not calls[0]["content"]
        for message in calls:
            (call,) = message["tool_calls"]
            calculates = not isinstance(next(iter(call["function"]["arguments"].values())), str)
            if not conversation.forced:
                assert message["content"].startswith("= ") == calculates
            bare += not message["content"] and calculates
            forced += conversation.forced and bool(message["content"])
    assert bare > 200
    assert forced > 30


def test_some_conversations_go_on_as_the_tutorial_s_script_tells_them(made: list[Conversation]):
    told = [conversation for conversation in made if conversation.given]
    assert len(told) > 200
    said = 0
    for conversation in told:
        *_, asked, echoed, result = conversation.messages[: conversation.given]
        assert asked["role"] == "user"
        assert set(echoed) == {"role", "content"}
        assert result["role"] == "environment"
        assert not any(message.get("tool_calls") for message in conversation.messages[: conversation.given])
        formula, _, number = result["content"].rpartition("=")
        if formula:
            assert value(formula) == json.loads(number)
            said += 1
    assert 0.5 < said / len(told) < 0.8
    assert any(calls_of(conversation) for conversation in told)


def test_an_imitated_conversation_calls_nothing_in_its_last_turn_and_lacks_the_tool_it_would_need(
    made: list[Conversation],
):
    imitated = [conversation for conversation in made if conversation.imitate]
    assert len(imitated) > 300
    for conversation in imitated:
        assert "tool_calls" not in conversation.messages[-1]
        names = " ".join(tool["name"] for tool in conversation.tools)
        if "minus" in conversation.messages[-2]["content"]:
            assert not re.search("sub|minus|difference", names)


def test_development_shares_no_wording_with_training():
    def skeletons(development: bool) -> set[str]:
        some = itertools.islice(conversations(9, [], development=development), 1500)
        return {NUMBER.sub("#", _first_question(each)) for each in some if not _calls_with_text(each)}

    assert not skeletons(True) & skeletons(False)


def _calls_with_text(conversation: Conversation) -> bool:
    """Whether a function with a text is called: the wordings of those are not divided."""
    return any(isinstance(value, str) for call in calls_of(conversation) for value in call["arguments"].values())


def _first_question(conversation: Conversation) -> str:
    return next(message["content"] for message in conversation.messages if message["role"] == "user")


def test_the_tools_look_as_lmdeploy_hands_them_to_the_template(made: list[Conversation]):
    from lmdeploy.serve.openai.protocol import ChatCompletionRequest
    from lmdeploy.serve.parsers.tool_parser.tool_parser import dump_tools

    from lab3.funcall import add, mul, tool_schema

    for conversation in made[:50]:
        told = [
            {"type": "function", "function": {key: value for key, value in tool.items() if value is not None}}
            for tool in conversation.tools
        ]
        request = ChatCompletionRequest(model="m", messages=[], tools=told)
        assert json.dumps(dump_tools(request).tools) == json.dumps(conversation.tools)
    lab = {json.dumps(tool) for conversation in made for tool in conversation.tools}
    for function in (add, mul):  # the lab's own functions are among them, letter by letter
        request = ChatCompletionRequest(model="m", messages=[], tools=[tool_schema(function)])
        assert json.dumps(dump_tools(request).tools[0]) in lab


def test_the_held_out_cases_share_neither_wordings_nor_tool_names_with_training(made: list[Conversation]):
    from bench.toolcall_cases import held_out_cases
    from tools import toolcall_phrases as phrases
    from tools.wordings import is_trained, wording

    cases = held_out_cases()
    asked = {
        wording(message["content"])
        for conversation in [*made, *itertools.islice(conversations(8, []), 12_000)]
        for message in conversation.messages
        if message["role"] == "user"
    }
    assert not [case.question for case in cases if wording(case.question) in asked or is_trained(case.question)]
    joined = {
        "".join(parts)
        for core in phrases.NAME_CORE.values()
        for parts in itertools.product(phrases.NAME_PREFIX, core, phrases.NAME_SUFFIX)
    }
    others = {other[0] for other in phrases.OTHERS} | {name for some in phrases.SUB_DIV_NAMES.values() for name in some}
    plain = {name.replace("_", "").lower() for name in joined | others}
    held_out = {tool.name.replace("_", "").lower() for case in cases for tool in case.tools}
    assert not plain & held_out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 5?", "what is 17.5 * (-2)"),
        ("Add 3 and -5.", "add 1 and 2"),
        ("(3+5)*2 =", "-1×(2+(-3))？"),
        ("请问3加5", "请问 -12 加 0.5？"),
    ],
)
def test_questions_that_differ_in_numbers_alone_are_worded_alike(one: str, other: str):
    from tools.wordings import wording

    assert wording(one) == wording(other)
    assert wording(one) != wording("Multiply 3 and 5.")


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("What is 3 + 5?", True),
        ("Zoe has 12 plums and Uncle Jim has 7 plums. How many plums do they have altogether?", True),  # other names
        ("What is the capital of Portugal?", True),  # asked of another function
        ("Zoe has 12 plums and eats 7 of them with Uncle Jim. How many did they eat?", False),
    ],
)
def test_a_wording_is_trained_whatever_is_filled_in(text: str, trained: bool):
    from tools.wordings import is_trained

    assert is_trained(text) is trained


def test_the_written_conversations_are_in_turns_and_none_is_there_twice():
    from tools.toolcall_phrases import TALKS

    for talk in TALKS:
        assert [message["role"] for message in talk] == ["user", "assistant"] * (len(talk) // 2)
        assert all(message["content"].strip() for message in talk)
    texts = [message["content"] for talk in TALKS for message in talk if message["role"] == "assistant"]
    assert len(texts) == len(set(texts)) > 300


def test_what_perplexity_is_measured_on_is_not_in_the_written_conversations():
    """Not a run of 16 letters of Chinese or 40 of anything else: two texts about different things share no more."""
    from lab3.calibration import bundled_heldout
    from tools.toolcall_phrases import TALKS

    held_out = [str(message.get("content") or "") for sample in bundled_heldout() for message in sample.messages]
    runs = set().union(*map(_runs, held_out))
    assert not [run for talk in TALKS for message in talk for run in _runs(message["content"]) if run in runs]


def _runs(text: str) -> set[str]:
    size = 16 if any("\u4e00" <= letter <= "\u9fff" for letter in text) else 40
    return {text[start : start + size] for start in range(len(text) - size + 1)}
