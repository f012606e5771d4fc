"""What a script is worth is read off the wire: real scripts in the real sandbox, and nothing they print is believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab3.grading.results import Graded
from tests.fake_openai import Answer, FakeOpenAI, as_json, call, completion
from tests.grading.conftest import CHAT, LOOP, TOOLS, TUTORIAL, calculates

pytestmark = pytest.mark.xdist_group("sandbox")

CALLS = {"tools.add", "tools.mul", "tools.add_arguments", "tools.mul_arguments"}
ALL = CALLS | {"chat.answer", "tools.results", "tools.answer", "tools.nonce", "scripts.honest"}


def with_status(graded: Graded, status: str) -> set[str]:
    return {verdict["id"] for verdict in graded.verdicts if verdict["status"] == status}


@pytest.mark.parametrize("tools", [LOOP, TUTORIAL], ids=["a loop with role tool", "the tutorial's two rounds"])
def test_good_scripts_pass_everything(graded: Callable[..., Graded], tools: str):
    found = graded(chat=CHAT, function_call=tools)
    assert with_status(found, "pass") == ALL, found.verdicts
    assert (found.status, found.reasons) == ("graded", ())
    assert found.score == found.max_score == 35


def test_a_script_s_own_numbers_are_judged_by_their_own_arithmetic(graded: Callable[..., Graded]):
    found = graded(func=LOOP.replace("(3+5)*2", "(14+6)*4"))
    assert with_status(found, "pass") >= ALL - {"chat.answer"}
    assert found.evidence["tools"][0]["expected_answer"] == 80


MUTANTS = {
    "16 printed and nobody asked": (
        "print('add(3, 5) = 8, mul(8, 2) = 16')",
        CALLS | {"tools.results", "tools.answer", "scripts.honest"},
    ),
    "asked without tools": (
        TOOLS.replace(", tools=TOOLS", "") + "    print(ask().content)\n",
        CALLS | {"tools.results", "tools.answer"},
    ),
    "calls ignored, and computed by itself": (
        TOOLS + "    ask()\n    print((3 + 5) * 2)\n",
        {"tools.mul", "tools.mul_arguments", "tools.results", "tools.answer", "scripts.honest"},
    ),
    "the result is never sent back": (
        TOOLS + "    f = ask().tool_calls[0].function\n    print(DO[f.name](**json.loads(f.arguments)))\n",
        {"tools.mul", "tools.mul_arguments", "tools.results", "tools.answer"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tools", "failing"), MUTANTS.values(), ids=MUTANTS)
def test_a_fault_is_found_and_only_it(graded: Callable[..., Graded], tools: str, failing: set[str]):
    found = graded(func=tools)
    failed = with_status(found, "fail")
    assert [run["role"] for run in found.runs].count("tools") == 1, "what a script does by itself it does again"
    # What nothing was executed for is unknown rather than a fail.
    assert failed <= failing
    assert failing - failed <= {"tools.results", "tools.answer"}
    assert failed & (CALLS | {"scripts.honest", "tools.results"})
    assert not with_status(found, "pass") & failing


def test_a_chat_script_that_asks_nobody_is_found(graded: Callable[..., Graded]):
    found = graded(chat="print('Hello! I am a helpful model, and I like to talk about many things.')")
    assert with_status(found, "fail") == {"chat.answer", "scripts.honest"}


def test_a_history_that_the_model_never_said_is_for_a_person_to_judge(graded: Callable[..., Graded]):
    made_up = """
    messages.append({"role": "assistant", "content": "", "tool_calls": [
        {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 5}'}}]})
    messages.append({"role": "tool", "tool_call_id": "x", "content": "8"})
    print(ask().tool_calls)
    """
    found = graded(func=TOOLS + made_up)
    assert "scripts.honest" in with_status(found, "unknown")
    assert "tools.add" in with_status(found, "fail")
    assert found.status == "needs_review"


def test_a_model_that_misses_by_chance_is_asked_again_and_how_often_is_told(
    fake: FakeOpenAI, graded: Callable[..., Graded]
):
    missed = 0

    def sometimes(body):
        nonlocal missed
        missed += 1
        return completion("I would rather not.") if missed <= 2 else calculates(body)

    fake.always = sometimes
    found = graded(func=LOOP)
    assert with_status(found, "pass") >= CALLS
    assert [run["right"] for run in found.runs] == [False, False, True]
    assert len({body["seed"] for body in fake.bodies[:3]}) == 3, "each time by another seed"


def test_a_model_that_never_calls_fails_and_is_asked_no_more_than_was_said(
    fake: FakeOpenAI, graded: Callable[..., Graded]
):
    fake.always = lambda _: completion("I would rather not.")
    found = graded(func=LOOP)
    assert len(found.runs) == 4
    assert with_status(found, "fail") >= {"tools.add", "tools.mul", "tools.nonce"}


def test_the_server_s_trouble_is_no_fail(fake: FakeOpenAI, graded: Callable[..., Graded]):
    fake.always = lambda _: as_json({"error": {"message": "out of memory"}}, status=500)
    found = graded(chat=CHAT, func=LOOP, wall_s=60)  # a run that is over before it asks has met no trouble
    assert found.status == "infra_error"
    assert not with_status(found, "fail")


def test_a_server_that_hangs_until_the_time_is_over_is_no_fail_and_no_time_out_of_the_student_s(
    fake: FakeOpenAI, graded: Callable[..., Graded], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lab3.grading.subject.ATTEMPTS", 2)  # each of them waits for its time to be over
    fake.always = lambda _: Answer(hang=True)
    found = graded(chat=CHAT, wall_s=10)  # the script is long past its imports by then
    assert found.status == "infra_error"
    assert "had not answered request 2" in found.reasons[0]
    assert not with_status(found, "fail")


def test_an_endless_loop_is_a_time_out(graded: Callable[..., Graded]):
    found = graded(chat="while True: pass\n" + CHAT.replace("    ", ""), wall_s=2)
    assert found.status == "timeout"
    assert "chat.py was ended at its limit" in found.reasons[0]


def test_a_call_whose_arguments_are_no_json_is_the_model_s(fake: FakeOpenAI, graded: Callable[..., Graded]):
    fake.always = lambda _: completion("", tool_calls=[call("add", "{3, 5}")])
    found = graded(func=LOOP)
    assert with_status(found, "fail") >= {"tools.add"}
    (blame,) = {v["blame"]["kind"] for v in found.verdicts if v["id"] == "tools.add"}
    assert blame == "arguments_not_json"


def test_a_model_that_a_script_knows_by_another_name_is_the_one_that_is_served(
    fake: FakeOpenAI, graded: Callable[..., Graded]
):
    graded(chat=CHAT.replace("client.models.list().data[0].id", "'/root/models/mine'"))
    assert {body["model"] for body in fake.bodies} == {"fake"}


def test_the_same_submission_gives_the_same_result_but_for_times(graded: Callable[..., Graded]):
    one, two = (graded(chat=CHAT, func=TUTORIAL.replace("first = ", "print(ask()); first = ")) for _ in range(2))
    told = [{name: value for name, value in each.to_dict().items() if name != "times"} for each in (one, two)]
    assert told[0] == told[1]


def test_a_notebook_is_run_as_a_script(folder, graded: Callable[..., Graded]):
    import json
    from textwrap import dedent

    cells = [{"cell_type": "code", "source": dedent(CHAT), "metadata": {}, "outputs": [], "execution_count": None}]
    (folder / "chat.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert "chat.answer" in with_status(graded(), "pass")
