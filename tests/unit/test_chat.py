"""One conversation over the OpenAI API, and every way in which it can go wrong."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab3.chat import Usage, chat
from lab3.errors import InfraError, UsageError
from lab3.openai_client import BrokenAnswer, MalformedAnswer, api_url
from tests.fake_openai import USAGE_CHUNK, Answer, as_json, completion, delta, fake_openai, free_port, sse


@pytest.fixture
def server():
    with fake_openai() as fake:
        yield fake


def test_an_answer_carries_text_tokens_and_the_transcript(server):
    server.will(completion("I am InternLM."))

    result = chat("介绍一下你自己", base_url=server.url)

    assert result.text == "I am InternLM."
    assert result.usage == Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)
    assert result.finish_reason == "stop"
    assert [m["role"] for m in result.messages] == ["user", "assistant"]
    assert result.ttft_s is None
    assert json.loads(json.dumps(result.to_dict()))["messages"][1]["content"] == "I am InternLM."


def test_a_further_turn_sends_all_that_was_said_before(server):
    server.will(completion("one"), completion("two"))

    first = chat("count", base_url=server.url)
    chat(first.followed_by("go on"), base_url=server.url)

    assert [m["content"] for m in server.bodies[1]["messages"]] == ["count", "one", "go on"]


def test_the_first_model_the_server_lists_is_asked(server):
    server.models = as_json({"data": [{"id": "/root/internlm2_5-1_8b-chat-w4a16"}, {"id": "adapter"}]})
    server.will(completion())

    chat("hi", base_url=server.url)

    assert server.bodies[0]["model"] == "/root/internlm2_5-1_8b-chat-w4a16"


def test_only_what_was_given_is_sent(server):
    server.will(completion(), completion())

    chat("hi", base_url=server.url, model="m", temperature=0.0, top_p=0.8, seed=3, max_tokens=9, stop=["\n"])
    chat("hi", base_url=server.url, model="m", max_tokens=None)

    assert server.bodies[0] == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "m",
        "temperature": 0.0,
        "top_p": 0.8,
        "seed": 3,
        "max_tokens": 9,
        "stop": ["\n"],
    }
    assert set(server.bodies[1]) == {"messages", "model"}


def test_a_streamed_answer_is_timed_from_its_first_to_its_last_token(server):
    server.will(sse(delta(role="assistant"), delta(content="a"), delta(content="b"), delta("stop"), USAGE_CHUNK))
    ticks = itertools.count(100.0)  # the clock is read at the start, then twice for each chunk

    result = chat("hi", base_url=server.url, model="m", stream=True, clock=lambda: next(ticks))

    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert result.text == "ab"
    assert result.ttft_s == 3
    assert result.tokens_per_second == (3 - 1) / 2  # tokens at 3 s and 5 s
    assert result.seconds == 11


def test_unstreamed_speed_is_tokens_by_the_whole_time(server):
    server.will(completion(usage={"prompt_tokens": 1, "completion_tokens": 30, "total_tokens": 31}))
    ticks = iter([0.0, 2.0])

    assert chat("hi", base_url=server.url, model="m", clock=lambda: next(ticks)).tokens_per_second == 15


def test_a_server_that_streams_no_usage_gets_no_invented_one(server):
    server.will(sse(delta(content="a"), delta("stop")))

    result = chat("hi", base_url=server.url, stream=True)

    assert (result.text, result.usage, result.tokens_per_second) == ("a", None, None)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1_or_not(server, suffix):
    server.will(completion())

    chat("hi", base_url=server.url + suffix)

    assert [request["path"] for request in server.requests] == ["/v1/models", "/v1/chat/completions"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:23333", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_url_is_said_to_be_none(url):
    with pytest.raises(UsageError, match="is not the URL of a server"):
        api_url(url)


def test_nothing_of_the_users_openai_account_reaches_the_server(server, monkeypatch):
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "sk-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: sk-secret\nAuthorization: Bearer sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://sk-secret.invalid")
    server.will(completion())

    chat("hi", base_url=server.url)

    assert len(server.requests) == 2
    assert "sk-secret" not in json.dumps(server.requests)
    assert {request["headers"]["authorization"] for request in server.requests} == {"Bearer none"}


def test_a_server_on_this_machine_is_never_reached_through_a_proxy(server, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    server.will(completion())

    assert chat("hi", base_url=server.url).text == "hello"


def test_a_redirect_is_not_followed_with_the_key(server):
    server.will(Answer(status=307, headers={"location": "http://127.0.0.1:9/v1/chat/completions"}))

    with pytest.raises(UsageError, match="307"):
        chat("hi", base_url=server.url, model="m", api_key="k")


def test_no_server_says_how_to_start_one():
    with pytest.raises(InfraError, match="No server answers") as caught:
        chat("hi", base_url=f"http://127.0.0.1:{free_port()}")

    assert "lab3 serve MODEL" in caught.value.todo


def test_an_unknown_model_names_those_that_are_served(server):
    server.will(as_json({"message": "The model 'x' does not exist.", "type": "not_found_error"}, status=404))

    with pytest.raises(UsageError, match="does not serve that model") as caught:
        chat("hi", base_url=server.url, model="x")

    assert caught.value.todo == "ask for one of: fake"


def test_another_program_on_the_port_is_told_from_an_unknown_model(server):
    server.models = as_json({"detail": "Not Found"}, status=404)
    server.will(as_json({"detail": "Not Found"}, status=404))

    with pytest.raises(UsageError, match="is not an OpenAI API"):
        chat("hi", base_url=server.url, model="x")


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(400, UsageError, "top_p"), (401, UsageError, "API key"), (422, UsageError, "422"), (500, InfraError, "500")],
)
def test_what_the_server_refuses_is_the_users_what_it_breaks_is_not(server, status, kind, said):
    server.will(as_json({"message": "top_p must be in (0, 1]", "code": status}, status=status))

    with pytest.raises(kind, match=said) as caught:
        chat("hi", base_url=server.url, model="m")

    assert caught.value.exit_code == (2 if kind is UsageError else 3)
    assert len(server.requests) == 1, "nothing is retried"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_never_answers_is_given_up(server, stream):
    server.will(Answer(hang=True))
    start = time.monotonic()

    with pytest.raises(InfraError, match=r"within 0\.3 s"):
        chat("hi", base_url=server.url, model="m", stream=stream, timeout_s=0.3)

    assert time.monotonic() - start < 3


def test_a_stream_that_stalls_keeps_what_had_come(server):
    server.will(sse(delta(content="I am In"), done=False, hang=True))

    with pytest.raises(BrokenAnswer, match="did not answer") as caught:
        chat("hi", base_url=server.url, model="m", stream=True, timeout_s=0.3)

    assert caught.value.partial_text == "I am In"


def test_a_stream_that_never_ends_is_bounded_as_a_whole(server):
    server.will(sse(*[delta(content="x")] * 50, done=False, hang=True))
    ticks = itertools.count()

    with pytest.raises(BrokenAnswer, match="still coming after 20 s") as caught:
        chat("hi", base_url=server.url, model="m", stream=True, timeout_s=20, clock=lambda: float(next(ticks)))

    assert 0 < len(caught.value.partial_text) < 50


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(sse(delta(content="I am"), done=False, cut=True), id="connection cut"),
        pytest.param(sse(delta(content="I am"), done=False), id="ended without finish_reason"),
        pytest.param(sse(delta(content="I am")), id="done without finish_reason"),
        pytest.param(sse(delta(content="I am"), b"data: {half\n\n"), id="not JSON"),
        pytest.param(sse(delta(content="I am"), {"error": {"message": "engine died", "code": 500}}), id="error event"),
    ],
)
def test_a_stream_that_breaks_keeps_what_had_come(server, rest):
    server.will(rest)

    with pytest.raises(BrokenAnswer) as caught:
        chat("hi", base_url=server.url, model="m", stream=True)

    assert caught.value.partial_text == "I am"


def test_a_server_that_dies_in_the_middle_is_not_said_to_send_nonsense(server):
    """Seen with TurboMind on an H100: the connection broke, and the message blamed the JSON."""
    server.will(sse(delta(content="I am"), done=False, cut=True))

    with pytest.raises(BrokenAnswer, match="broke off the connection") as caught:
        chat("hi", base_url=server.url, model="m", stream=True)

    assert not isinstance(caught.value, MalformedAnswer)


def drip(piece: bytes) -> Iterator[bytes]:
    for _ in range(300):
        yield piece
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("piece", [b" ", b"data: "], ids=["spaces", "words"])
def test_a_slow_drip_of_bytes_ends_at_the_deadline(server, piece, stream):
    dripping: Any = drip(piece)
    server.will(Answer(dripping, content_type="text/event-stream" if stream else "application/json"))
    started = time.monotonic()

    with pytest.raises(InfraError, match=r"did not answer within 0\.4 s"):
        chat("hi", base_url=server.url, model="m", stream=stream, timeout_s=0.4)

    assert time.monotonic() - started < 3


DEEP = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<html>It works!</html>", id="a web page"),
        pytest.param(b'{"choices": [', id="half a JSON"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no choices"),
        pytest.param(b'{"choices": []}', id="empty choices"),
        pytest.param(b'{"choices": [{}]}', id="no message"),
        pytest.param(b'{"choices": ["text"]}', id="a choice that is text"),
        pytest.param(DEEP, id="nested too deep"),
        pytest.param(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}', id="invalid UTF-8"),
        pytest.param(b"x" * 10_000_000, id="a line of 10 MB"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_what_is_not_the_openai_api_ends_in_an_error_that_says_so(server, body, content_type, stream):
    server.will(Answer((b"data: " + body + b"\n\n" if stream else body,), content_type=content_type))

    with pytest.raises(BrokenAnswer):
        chat("hi", base_url=server.url, model="m", stream=stream)


def test_a_model_list_that_is_none_is_not_believed(server):
    server.models = as_json({"models": ["fake"]})

    with pytest.raises(MalformedAnswer, match="is not a list of models"):
        chat("hi", base_url=server.url)


def test_a_server_without_a_model_is_not_asked(server):
    server.models = as_json({"data": []})

    with pytest.raises(InfraError, match="lists no model"):
        chat("hi", base_url=server.url)


def test_text_that_no_utf8_can_hold_is_mended(server):
    server.will(Answer((b'{"choices": [{"message": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}',)))

    assert chat("hi", base_url=server.url, model="m").text == "a?"


@pytest.mark.parametrize("said", ["", []])
def test_nothing_to_say_is_not_sent(said):
    with pytest.raises(UsageError, match="nothing to say"):
        chat(said, base_url="http://127.0.0.1:9")


def test_broken_unicode_on_the_command_line_is_the_users(server):
    with pytest.raises(UsageError, match="not valid Unicode"):
        chat("\udcff", base_url=server.url, model="m")


def test_importing_chat_does_not_import_the_slow_client():
    code = "import sys, lab3.chat, lab3.funcall; sys.exit('openai' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
