"""Scripts of many kinds, as the wire shows them: which calls were made, what went back, what was made up."""

from __future__ import annotations

import pytest

from lab3.grading.conversation import Followed, follow
from lab3.grading.wire import turns
from tests.wire_literals import (
    ADD,
    ADD_CALL,
    AFTER_ADD,
    AFTER_MUL,
    BY_THE_BOOK,
    FIRST,
    MUL,
    MUL_CALL,
    QUESTION,
    TUTORIAL,
    asked,
    assistant,
    call,
    environment,
    said,
    tool,
    user,
    wire,
)


def of(*pairs) -> Followed:
    return follow(turns(wire(*pairs)))


def only(facts: Followed):
    (question,) = facts.questions
    return question


def after_one_call(*messages, made=ADD_CALL, tools=(ADD, MUL), question=QUESTION, answer="ok") -> Followed:
    """A call, and a second request with these messages after it."""
    first = [user(question)]
    return of((asked(first, tools=tools), said(None, made)), (asked([*first, *messages], tools=tools), said(answer)))


# --- the tutorial and the loop by the book ------------------------------------------------------------------------


def test_the_tutorials_script_made_both_calls_sent_one_result_back_and_asked_nothing_after_the_other():
    question = only(of(*TUTORIAL))

    add, mul = question.calls
    assert (add.operation, add.numbers, add.computes, add.turn) == ("add", (3, 5), 8, 1)
    assert (add.result.role, add.result.right, add.result.turn, add.asked_after) == ("environment", True, 2, True)
    assert (mul.operation, mul.numbers, mul.computes, mul.turn) == ("mul", (8, 2), 16, 2)
    assert (mul.result, mul.asked_after) == (None, False)


def test_the_tutorials_second_call_follows_from_the_first_result():
    mul = only(of(*TUTORIAL)).calls[1]

    assert mul.origins == ("told", "question")
    assert mul.uses_results_of == (1,)


def test_the_tutorials_script_has_nothing_invented_and_no_last_answer():
    facts = of(*TUTORIAL)

    assert (facts.invented, facts.unasked_results) == ((), ())
    assert (only(facts).answer, only(facts).answer_tells_value) == ("", None)


def test_a_whole_loop_with_role_tool_is_one_question_with_its_value_steps_calls_results_and_answer():
    question = only(of(*BY_THE_BOOK))

    assert (question.turns, question.tools) == ((1, 2, 3), ("add", "mul"))
    assert (question.expression, question.value, question.steps_called) == ("(3+5)*2", 16, (True, True))
    assert [(each.result.by_id, each.result.right, each.result.turn) for each in question.calls] == [
        (True, True, 2),
        (True, True, 3),
    ]
    assert (question.answer, question.answer_tells_value, question.answer_tells_last_result) == (
        "The result is 16.",
        True,
        True,
    )
    assert (question.prompt_tokens, question.tool_choice) == (7, "auto")


def test_an_answer_with_another_number_is_told_apart():
    assert only(of(*BY_THE_BOOK[:2], (asked(AFTER_MUL), said("It is 42.")))).answer_tells_value is False


def test_two_calls_in_one_answer_are_two_calls_with_results_of_their_own():
    second = call("add", {"a": 1, "b": 1}, id="c9")
    messages = [user("3+5 and 1+1"), assistant(None, ADD_CALL, second), tool("2", "c9"), tool("8", "c1")]

    facts = of((asked(messages[:1]), said(None, ADD_CALL, second)), (asked(messages), said("8 and 2")))

    assert [(each.result.content, each.result.right) for each in only(facts).calls] == [("8", True), ("2", True)]


def test_results_as_text_find_the_calls_that_they_answer_in_whatever_order_they_come():
    second = call("add", {"a": 1, "b": 1}, id="c9")
    messages = [user("3+5 and 1+1"), assistant(None), environment("1+1=2"), environment("8")]

    facts = of((asked(messages[:1]), said(None, ADD_CALL, second)), (asked(messages), said("8 and 2")))

    assert [(each.result.content, each.result.right) for each in only(facts).calls] == [("8", True), ("1+1=2", True)]


# --- results ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(tool("8", "c1"), id="tool"),
        pytest.param(tool("8.0", "c1"), id="as a float"),
        pytest.param(tool('{"result": 8}', "c1"), id="JSON"),
        pytest.param(tool("3+5=8", "c1"), id="with its arguments"),
        pytest.param(environment("8"), id="environment"),
        pytest.param({"role": "function", "name": "add", "content": "8"}, id="function, the old role"),
        pytest.param(user("3+5=8"), id="a user's message"),
        pytest.param(user("8"), id="a user's message that is the number"),
        pytest.param(user("The function returned 8. Go on."), id="a user's message with words"),
        pytest.param(user("计算结果是 ８"), id="full-width"),
        pytest.param({"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "8"}]}, id="parts"),
    ],
)
def test_a_result_is_found_whatever_role_brings_it(message):
    facts = after_one_call(assistant(None, ADD_CALL), message)

    (made,) = only(facts).calls
    assert (made.result.role, made.result.right, made.result.turn) == (message["role"], True, 2)
    assert facts.unasked_results == ()


@pytest.mark.parametrize(
    "message",
    [tool("9", "c1"), tool("35", "c1"), environment("3+5=9"), environment(""), user("3+5=9"), tool("-8", "c1")],
)
def test_a_wrong_result_is_a_result_and_wrong(message):
    (made,) = only(after_one_call(assistant(None, ADD_CALL), message)).calls

    assert made.result.right is False


@pytest.mark.parametrize("message", [user("Are you sure?"), user("Now compute 8*3"), user("thanks, 3 times"), None])
def test_a_result_that_was_never_sent_back_is_missing(message):
    facts = after_one_call(assistant(None, ADD_CALL), *([message] if message else []))

    made = facts.questions[0].calls[0]
    assert made.result is None


def test_a_result_with_another_calls_id_is_given_to_the_call_that_waits_and_marked():
    (made,) = only(after_one_call(assistant(None, ADD_CALL), tool("8", "other"))).calls

    assert (made.result.by_id, made.result.right) == (False, True)


def test_a_result_that_no_call_asked_for_is_told():
    facts = of((asked([user(QUESTION), assistant(None, ADD_CALL), tool("8", "c1")]), said("16")))

    assert [(each.turn, each.role, each.content) for each in facts.unasked_results] == [(1, "tool", "8")]


def test_a_second_result_for_the_same_call_answers_none():
    facts = after_one_call(assistant(None, ADD_CALL), tool("8", "c1"), tool("16", "c1"))

    assert only(facts).calls[0].result.content == "8"
    assert [each.content for each in facts.unasked_results] == ["16"]


def test_a_request_that_is_sent_once_more_brings_nothing_new():
    facts = of(FIRST, (asked(AFTER_ADD), said(None)), (asked(AFTER_ADD), said("8")))

    assert only(facts).turns == (1, 2, 3)
    assert (facts.unasked_results, facts.invented) == ((), ())


def test_results_of_functions_that_are_not_judged_are_neither_right_nor_wrong():
    weather = {"name": "weather", "description": "tells the weather"}
    made = call("weather", {"city": "Rome"}, id="c1")

    facts = after_one_call(assistant(None, made), tool("sunny", "c1"), made=made, tools=(weather,), question="Rome?")

    (told,) = only(facts).calls
    assert (told.operation, told.computes, told.result.content, told.result.right) == (None, None, "sunny", None)


def test_a_client_that_sends_only_the_end_of_the_history_goes_on_with_its_question():
    short = [{"role": "system", "content": "be brief"}, assistant(None, ADD_CALL), tool("8", "c1")]

    facts = of(FIRST, (asked(short), said("8")))

    assert only(facts).turns == (1, 2)
    assert only(facts).calls[0].result.right is True


def test_a_result_in_a_new_conversation_goes_on_with_the_question():
    facts = of(FIRST, (asked([user("3+5=8. Multiply this by 2.")]), said(None, MUL_CALL)))

    question = only(facts)
    assert (question.turns, question.value) == ((1, 2), 16)
    assert question.calls[0].result.role == "user"
    assert question.calls[1].origins == ("told", "question")


# --- the calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (call("add", {"a": 3, "b": 5}), "ok"),
        (call("add", "{a: 3}"), "not_json"),
        (call("add", "NaN"), "not_json"),
        (call("add", [3, 5]), "not_an_object"),
        (call("div", {"a": 3, "b": 5}), "unknown_function"),
        (call("add", {"a": 3}), "invalid_arguments"),
    ],
)
def test_what_is_wrong_with_a_call_is_its_outcome(made, outcome):
    (found,) = only(of((asked([user(QUESTION)]), said(None, made)))).calls

    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("made", "called"),
    [
        (call("add", {"a": 3, "b": 5}), True),
        (call("add", {"x": 5, "y": 3}), True),
        (call("add", {"a": 3.0, "b": 5}), True),
        (call("add", {"a": 3, "b": 2}), False),
        (call("add", {"a": "3", "b": "5"}), False),
        (call("mul", {"a": 3, "b": 5}), False),
        (call("add", {"a": 3, "b": 5, "c": 0}), False),
    ],
)
def test_a_step_is_called_with_its_numbers_in_any_order(made, called):
    free = [{**each, "parameters": {}} for each in (ADD, MUL)]

    question = only(of((asked([user(QUESTION)], tools=free), said(None, made))))

    assert question.steps_called == (called, False)


def test_other_numbers_are_judged_by_their_own_arithmetic():
    messages = [user("请计算（１２＋７）× 4"), assistant(None), environment("12+7=19")]
    calls = call("add", {"a": 7, "b": 12}), call("mul", {"a": 19, "b": 4})

    question = only(of((asked(messages[:1]), said(None, calls[0])), (asked(messages), said(None, calls[1]))))

    assert (question.value, question.steps_called) == (76, (True, True))
    assert question.calls[1].origins == ("told", "question")


def test_numbers_that_nobody_named_are_unknown_and_results_that_were_not_told_are_untold():
    calls = ADD_CALL, call("mul", {"a": 8, "b": 7}, id="c2")

    _, mul = only(of((asked([user(QUESTION)]), said(None, *calls)))).calls

    assert mul.origins == ("untold", "unknown")
    assert mul.uses_results_of == ()


def test_a_wrong_result_that_the_model_goes_on_with_is_a_told_one():
    messages = [user(QUESTION), assistant(None, ADD_CALL), tool("9", "c1")]

    _, mul = only(of(FIRST, (asked(messages), said(None, call("mul", {"a": 9, "b": 2}))))).calls

    assert (mul.origins, mul.uses_results_of) == (("told", "question"), (1,))


def test_tools_of_other_names_are_known_by_their_description():
    plus = {"name": "calc", "description": "两个数相加"}

    (made,) = only(of((asked([user(QUESTION)], tools=[plus]), said(None, call("calc", {"a": 3, "b": 5}))))).calls

    assert (made.operation, made.computes, made.outcome) == ("add", 8, "ok")


# --- several questions --------------------------------------------------------------------------------------------


def test_the_same_question_asked_again_and_again_is_as_many_questions_even_with_the_same_history():
    messages = [user(QUESTION), assistant(None), environment("3+5=8")]
    again = (asked(messages), said(None, MUL_CALL))

    facts = of(FIRST, again, FIRST, again, FIRST)

    assert [question.turns for question in facts.questions] == [(1, 2), (3, 4), (5,)]
    assert [len(question.calls) for question in facts.questions] == [2, 2, 1]
    assert facts.questions[1].calls[0].result.right is True
    assert facts.questions[2].calls[0].result is None


def test_a_question_in_the_same_conversation_is_another_one_if_it_brings_an_expression():
    more = [*AFTER_ADD, assistant("8"), user("And 6*7?")]
    made = call("mul", {"a": 6, "b": 7}, id="c3")

    facts = of(FIRST, (asked(AFTER_ADD), said("8")), (asked(more), said(None, made)))

    assert [(question.value, question.turns) for question in facts.questions] == [(16, (1, 2)), (42, (3,))]
    assert facts.questions[1].calls[0].origins == ("question", "question")


def test_a_nudge_without_an_expression_stays_with_its_question():
    more = [*AFTER_ADD, assistant("8"), user("Please go on.")]

    facts = of(FIRST, (asked(AFTER_ADD), said("8")), (asked(more), said(None, MUL_CALL)))

    assert only(facts).steps_called == (True, True)


# --- what was made up ---------------------------------------------------------------------------------------------


def test_calls_in_the_history_that_the_model_never_made_are_invented():
    facts = of((asked(AFTER_MUL), said("16")))

    assert [(each.turn, each.kind) for each in facts.invented] == [(1, "call"), (1, "call")]
    assert "add" in facts.invented[0].content


def test_an_answer_in_the_history_that_the_model_never_gave_is_invented_and_told_once():
    made_up = [user(QUESTION), assistant("I will call add.")]

    facts = of((asked(made_up), said("no")), (asked([*made_up, assistant("no"), user("do")]), said("x")))

    assert [(each.turn, each.kind, each.content) for each in facts.invented] == [(1, "text", "I will call add.")]


@pytest.mark.parametrize(
    "echo",
    [
        assistant(None, ADD_CALL),
        assistant("", call("add", '{"b":5,"a":3}', id="other")),
        assistant("None"),
        assistant('<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": 5}}<|action_end|>'),
    ],
)
def test_what_the_model_said_may_be_written_in_another_way(echo):
    assert after_one_call(echo, tool("8", "c1")).invented == ()


def test_a_text_and_a_call_in_internlms_form_may_be_sent_back_as_one():
    block = '<|action_start|><|plugin|>{"name": "add", "parameters": {"b": 5, "a": 3}}<|action_end|>'
    messages = [user(QUESTION), assistant(f"I add first. {block}"), environment("8")]

    facts = of((asked(messages[:1]), said("I add first.", ADD_CALL)), (asked(messages), said("8")))

    assert facts.invented == ()


@pytest.mark.parametrize(
    "echo",
    [
        assistant(None, call("add", {"a": 3, "b": 6}, id="c1")),
        assistant('<|action_start|><|plugin|>{"name": "mul", "parameters": {"a": 3, "b": 5}}<|action_end|>'),
        assistant("<|action_start|><|plugin|>rubbish<|action_end|>"),
        {"role": "assistant", "content": None, "tool_calls": ["rubbish"]},
    ],
)
def test_a_call_that_was_changed_is_invented(echo):
    assert [each.kind for each in after_one_call(echo, tool("8", "c1")).invented] == ["call"]
