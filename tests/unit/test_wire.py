"""What a recorded exchange says is read as the OpenAI client would have read it, and trouble has its right address."""

from __future__ import annotations

import json

import pytest

from lab3.grading.wire import Turn, first_tool_request, nonce_request, turns
from tests.fake_openai import USAGE_CHUNK, delta, sse
from tests.wire_literals import ADD, MUL, asked, call, exchange, said, user

DEEP = b'{"a":' * 100 + b"1" + b"}" * 100
STREAMED = asked([user("hi")], stream=True)


def read(**parts) -> Turn:
    """The one turn of one exchange."""
    (turn,) = turns([exchange(**parts)])
    return turn


def stream(*events, **how) -> bytes:
    return b"".join(sse(*events, **how).body)


def streamed(*events, request=STREAMED, **changes) -> Turn:
    body = events[0] if len(events) == 1 and isinstance(events[0], bytes) else stream(*events)
    return read(request=request, answer=body, streamed=True, content_type="text/event-stream", **changes)


def piece(index: int, **function) -> dict:
    parts = {key: function.pop(key) for key in ("id",) if key in function}
    return {"index": index, **parts, "type": "function", "function": function}


def trouble(turn: Turn) -> list[tuple[str, str | None]]:
    return [(problem.kind, problem.fault) for problem in turn.problems]


# --- whole answers ------------------------------------------------------------------------------------------------


def test_a_plain_answer_is_its_message_usage_and_finish_reason():
    turn = read(request=asked([user("hi")]), answer=said("hello"))

    assert turn.message == {"role": "assistant", "content": "hello"}
    assert turn.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert (turn.finish_reason, turn.problems, turn.text) == ("stop", (), "hello")


def test_calls_of_a_plain_answer_keep_their_ids_and_the_text_of_their_arguments():
    made = [call("add", '{"a": 3,\n "b": 5}', id="x"), call("mul", "no json", id="y")]

    turn = read(request=asked([user("hi")]), answer=said(None, *made))

    assert turn.calls == made
    assert turn.message["content"] == ""


def test_only_chat_requests_are_turns():
    paths = ["/v1/models", "/v1/chat/completions", "/v1/embeddings", "/v1/chat/completions?a=1"]
    exchanges = [exchange(at, request=asked([]), answer=said("x"), path=path) for at, path in enumerate(paths, 1)]

    assert [turn.number for turn in turns(exchanges)] == [2, 4]


# --- streams ------------------------------------------------------------------------------------------------------


def test_the_pieces_of_a_stream_are_put_together():
    turn = streamed(delta(role="assistant"), delta(content="hel"), delta(content="lo"), delta("stop"), USAGE_CHUNK)

    assert turn.message == {"role": "assistant", "content": "hello"}
    assert (turn.finish_reason, turn.usage["total_tokens"], turn.problems) == ("stop", 10, ())


def test_pieces_of_several_calls_are_put_together_by_their_index_even_if_they_alternate():
    turn = streamed(
        delta(tool_calls=[piece(0, id="a", name="add", arguments="")]),
        delta(tool_calls=[piece(1, id="b", name="mul", arguments='{"a"')]),
        delta(tool_calls=[piece(0, arguments='{"a": 3, ')]),
        delta(tool_calls=[piece(1, arguments=": 8}"), piece(0, arguments='"b": 5}')]),
        delta("tool_calls"),
    )

    assert turn.calls == [call("add", '{"a": 3, "b": 5}', id="a"), call("mul", '{"a": 8}', id="b")]
    assert turn.problems == ()


def test_comments_other_fields_and_other_line_ends_of_a_stream_are_read_as_the_format_says():
    body = stream(delta(content="né"), delta("stop")).replace(b"\n", b"\r\n")

    turn = streamed(b": ping\r\n\r\nevent: message\r\nid: 4\r\n" + body)

    assert (turn.text, turn.problems) == ("né", ())


def test_a_stream_that_the_server_broke_off_shows_what_had_come_and_one_problem():
    whole = stream(delta(content="hel"), delta(content="lo"), delta("stop"))

    turn = streamed(whole[: whole.index(b'"lo"')], error="gone", error_kind="server_broke")

    assert (turn.text, turn.finish_reason) == ("hel", None)
    assert trouble(turn) == [("server_broke", "server")]


def test_a_call_that_had_come_before_the_client_hung_up_counts():
    body = stream(delta(tool_calls=[piece(0, id="a", name="add", arguments="{}")]), done=False)

    turn = streamed(body, error="gone", error_kind="client_gone")

    assert turn.calls == [call("add", "{}", id="a")]
    assert trouble(turn) == [("client_gone", "client")]


def test_a_stream_that_ends_without_a_finish_reason_is_the_servers_fault():
    turn = streamed(delta(content="hel"))

    assert turn.text == "hel"
    assert trouble(turn) == [("bad_answer", "server")]


def test_an_error_in_the_middle_of_a_stream_is_the_servers_fault_and_told():
    turn = streamed(delta(content="hel"), {"error": {"message": "out of memory"}})

    assert turn.text == "hel"
    assert "out of memory" in turn.problems[0].text
    assert trouble(turn)[0] == ("bad_answer", "server")


def test_what_is_missing_in_a_recording_that_was_cut_is_nobodys_fault():
    body = stream(delta(content="hel"), delta("stop"))

    assert trouble(streamed(body[:-200], truncated=True)) == [("truncated", None)]


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(b"<html>", "no JSON object", id="not JSON"),
        pytest.param([], "no JSON object", id="a list"),
        pytest.param(b'{"a": NaN}', "no JSON object", id="NaN"),
        pytest.param(b"[" * 5000, "no JSON object", id="too deep to be read"),
        pytest.param(DEEP, "no JSON object", id="too deep to be honest"),
        pytest.param({"choices": []}, "choices", id="no choices"),
        pytest.param({"choices": [{"index": 0}]}, "without a message", id="no message"),
        pytest.param({"error": {"message": "no"}}, "no choice", id="an error with status 200"),
        pytest.param(said("cut") | {"choices": [{**said("x")["choices"][0], "finish_reason": None}]}, "finish_reason"),
    ],
)
def test_an_answer_that_is_none_is_the_servers_fault(answer, told):
    turn = read(request=asked([user("hi")]), answer=answer)

    assert trouble(turn) == [("bad_answer", "server")]
    assert told in turn.problems[0].text


@pytest.mark.parametrize(
    ("reason", "text", "tokens", "made", "fault"),
    [
        pytest.param("length", "", 5, (), "server", id="more tokens than a character has, and no text"),
        pytest.param("length", "", 4, (), None, id="a character that was cut"),
        pytest.param("length", "\n", 5, (), None, id="white space is what it said"),
        pytest.param("stop", "", 5, (), None, id="it ended by itself"),
        pytest.param("length", "", 5, (call("add", "{}"),), None, id="a call"),
        pytest.param("length", "", None, (), None, id="nobody tells how many"),
    ],
)
def test_a_cut_answer_whose_text_was_lost_is_the_servers_fault(reason, text, tokens, made, fault):
    answer = said(text, *made)
    answer["choices"][0]["finish_reason"] = reason
    answer["usage"] = {"prompt_tokens": 7, "completion_tokens": tokens}

    turn = read(request=asked([user("hi")]), answer=answer)

    assert trouble(turn) == ([("bad_answer", fault)] if fault else [])


@pytest.mark.parametrize(
    ("status", "kind", "fault"),
    [
        (400, "refused", "client"),
        (404, "refused", "client"),
        (422, "refused", "client"),
        (429, "failed", "server"),
        (500, "failed", "server"),
        (503, "failed", "server"),
    ],
)
def test_a_refusal_is_the_clients_doing_and_a_failure_the_servers(status, kind, fault):
    turn = read(request=asked([user("hi")]), answer={"message": "because"}, status=status)

    assert trouble(turn) == [(kind, fault)]
    assert turn.problems[0].text.startswith(f"{status}: ")
    assert "because" in turn.problems[0].text
    assert turn.message is None


@pytest.mark.parametrize("body", [b"", b"hello", b"[1]", b"\xff", b'{"a":' * 3000, DEEP, b"1e999", b"9" * 5000])
def test_a_request_that_is_no_json_object_is_the_clients_fault(body):
    turn = read(request=body, answer={"message": "bad"}, status=400)

    assert turn.request == {}
    assert ("bad_request", "client") in trouble(turn)


@pytest.mark.parametrize(
    "request_", [{"messages": "hi"}, {"messages": [1, None, "x"]}, {"tools": 3}, {"tools": [{"function": 1}, 2]}, {}]
)
def test_a_request_of_the_wrong_shape_has_no_messages_and_no_tools(request_):
    turn = read(request=request_, answer=said("hi"))

    assert (turn.messages, turn.tools) == ([], [])


def test_a_turn_is_json_ready_whatever_letters_the_model_wrote():
    turn = read(request=asked([user("\ud800")]), answer=said("\ud800", call("add", '{"a": "\ud800"}')))

    assert json.loads(json.dumps(turn.to_dict()))["message"]["content"] == "?"


# --- the grader's own question ------------------------------------------------------------------------------------


def test_the_first_request_with_tools_is_found():
    plain, first, second = asked([user("a")], tools=()), asked([user("b")]), asked([user("c")])
    recorded = [exchange(at, request=each, answer=said("x")) for at, each in enumerate((plain, first, second), 1)]

    assert first_tool_request(turns(recorded)) == first
    assert first_tool_request(turns(recorded[:1])) is None


def test_a_nonce_keeps_the_students_tools_roles_and_parameters_and_replaces_the_last_question():
    system, example = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "4"}
    request = asked([system, user("2+2"), example, user("3+5")], temperature=0.7, tool_choice="auto", seed=1)

    nonce = nonce_request(request, question="41+17")

    assert nonce == request | {"messages": [system, user("2+2"), example, user("41+17")]}
    assert request["messages"][-1] == user("3+5"), "the recorded request stays as it was"


def test_a_nonce_asks_for_one_whole_answer_and_drops_what_follows_the_question():
    late = {"role": "assistant", "content": "let me see"}
    request = asked([user("3+5"), late], stream=True, stream_options={"include_usage": True}, n=4)

    nonce = nonce_request(request, question="41+17")

    assert nonce == asked([user("41+17")])


def test_a_question_in_parts_becomes_one_text():
    parts = [{"type": "text", "text": "3+5"}, {"type": "image_url", "image_url": {"url": "x"}}]

    assert nonce_request(asked([{"role": "user", "content": parts, "name": "me"}]), question="1+1")["messages"] == [
        {"role": "user", "content": "1+1", "name": "me"}
    ]


@pytest.mark.parametrize("messages", [[], "text", None, [{"role": "system", "content": "3+5?"}]])
def test_a_request_without_a_user_gets_one(messages):
    nonce = nonce_request({"model": "m", "messages": messages}, question="1+1")

    assert nonce["messages"][-1] == user("1+1")


def test_the_tools_of_a_turn_are_its_functions():
    assert read(request=asked([user("x")]), answer=said("y")).tools == [ADD, MUL]
