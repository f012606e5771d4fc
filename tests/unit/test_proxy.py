"""The recording proxy between real clients and real servers, both of which may misbehave."""

from __future__ import annotations

import errno
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from lab3.errors import InfraError, UsageError
from lab3.grading import proxy as proxy_module
from lab3.grading.proxy import ProxyLimits, RecordingProxy
from lab3.grading.wire import turns
from lab3.openai_client import _http_library
from tests.fake_openai import Answer, FakeOpenAI, as_json, call, completion, delta, fake_openai, free_port, sse

CHAT = "/v1/chat/completions"
ASK = {"model": "fake", "messages": [{"role": "user", "content": "Compute (3+5)*2"}]}
WAIT_S = 30
GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as server:
        yield server


@pytest.fixture
def door(tmp_path) -> Path:
    return tmp_path / "model.sock"


# --- the real client ----------------------------------------------------------------------------------------------


def test_the_real_client_gets_the_servers_answer_and_both_are_recorded(fake, door):
    fake.will(completion("hello", tool_calls=[call("add", '{"a": 3, "b": 5}')]))

    with recording(fake.url, door) as proxy, client(door) as api:
        listed = [model.id for model in api.models.list()]
        answer = api.chat.completions.create(**ASK)

    assert (listed, answer.choices[0].message.tool_calls[0].function.name) == (["fake"], "add")
    models, chat = proxy.exchanges
    assert (models.number, models.method, models.path, models.status) == (1, "GET", "/v1/models", 200)
    assert (chat.number, chat.method, chat.path, chat.status) == (2, "POST", CHAT, 200)
    assert json.loads(chat.request_body) == ASK == fake.bodies[0]
    assert json.loads(chat.response_body)["choices"][0]["message"]["content"] == "hello"
    assert 0 <= models.began_s < chat.began_s < chat.first_byte_s <= chat.ended_s
    assert (chat.streamed, chat.truncated, chat.error, chat.fault, chat.by_proxy) == (False, False, None, None, False)


def test_a_streamed_tool_call_comes_through_whole_and_is_read_as_the_client_read_it(fake, door):
    pieces = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}]
    rest = [{"index": 0, "function": {"arguments": part}} for part in ('{"a": 3,', ' "b": 5}')]
    fake.will(sse(delta(role="assistant"), *(delta(tool_calls=[each]) for each in pieces + rest), delta("tool_calls")))

    with recording(fake.url, door) as proxy, client(door) as api:
        chunks = list(api.chat.completions.create(**ASK, stream=True))

    assert len(chunks) == 5
    (turn,) = turns(proxy.exchanges)
    assert turn.calls == [call("add", '{"a": 3, "b": 5}', id="c1")]
    assert (turn.streamed, turn.problems) == (True, ())
    assert proxy.exchanges[0].response_body.endswith(b"data: [DONE]\n\n")


def test_a_stream_is_passed_on_piece_by_piece(door):
    """The server goes on only after the client has what came before."""
    had = {name: threading.Event() for name in ("headers", "first")}
    waited = []

    def stream(handler: BaseHTTPRequestHandler) -> None:
        begin(handler, {"Content-Type": "text/event-stream"})
        waited.append(had["headers"].wait(WAIT_S))
        handler.wfile.write(event("one"))
        waited.append(had["first"].wait(WAIT_S))
        handler.wfile.write(event("two") + b"data: [DONE]\n\n")

    with serving(stream) as url, recording(url, door) as proxy, client(door) as api:
        chunks = api.chat.completions.create(**ASK, stream=True)
        had["headers"].set()
        texts = [next(chunks).choices[0].delta.content]
        had["first"].set()
        texts += [chunk.choices[0].delta.content for chunk in chunks]

    assert waited == [True, True]
    assert texts == ["one", "two"]
    assert proxy.exchanges[0].streamed


def test_a_refusal_of_the_server_is_passed_on(fake, door):
    fake.will(as_json({"message": "no such model"}, status=404))

    with recording(fake.url, door) as proxy, client(door) as api, pytest.raises(openai.NotFoundError, match="no such"):
        api.chat.completions.create(**ASK)

    (chat,) = proxy.exchanges
    assert (chat.status, chat.by_proxy, chat.error) == (404, False, None)


def test_a_slow_answer_does_not_hold_up_another_and_both_have_the_numbers_of_their_beginning(door):
    begun, done = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if b"slow" in body_of(handler):
            begun.set()
            done.wait(WAIT_S)
        whole(handler, b"{}")

    with serving(answer) as url, recording(url, door) as proxy, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, door, post(b"slow"))
        assert begun.wait(WAIT_S)
        fast = send(door, post(b"fast"))
        done.set()
        assert status(slow.result()) == status(fast) == 200

    assert [exchange.request_body for exchange in proxy.exchanges] == [b"slow", b"fast"]
    assert proxy.exchanges[1].ended_s < proxy.exchanges[0].ended_s


def test_the_connection_to_the_server_is_kept(door):
    connections = set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        connections.add(handler.client_address)
        body_of(handler)
        whole(handler, b"{}")

    with serving(answer) as url, recording(url, door):
        for _ in range(5):
            assert status(send(door, post(b"{}"))) == 200

    assert len(connections) == 1


# --- headers ------------------------------------------------------------------------------------------------------


def test_the_server_gets_the_key_and_its_own_name_and_the_recording_no_secrets(fake, door):
    fake.will(completion())
    secrets = {"cookie": "crumb-quokka", "x-api-key": "sesame-quokka", "proxy-authorization": "pass-quokka"}

    with recording(fake.url, door) as proxy, client(door, headers=secrets) as api:
        api.chat.completions.create(**ASK)

    sent = fake.requests[0]["headers"]
    assert sent["authorization"] == "Bearer key-quokka"
    assert sent["host"] == fake.url.removeprefix("http://")
    assert "proxy-authorization" not in sent
    assert "quokka" not in str(proxy.exchanges[0])
    assert proxy.exchanges[0].request_headers["user-agent"].startswith("OpenAI")


def test_headers_about_one_connection_end_there(fake, door):
    fake.will(Answer((b"{}",), headers={"keep-alive": "timeout=1", "x-hop": "1", "Connection": "x-hop", "x-end": "1"}))
    mine = {"Connection": "close, x-mine", "x-mine": "1", "te": "trailers", "x-other": "1", "upgrade": "h2c"}

    with recording(fake.url, door):
        answer = send(door, post(b"{}", **mine))

    assert {"x-mine", "te", "upgrade"}.isdisjoint(fake.requests[0]["headers"])
    assert fake.requests[0]["headers"]["x-other"] == "1"
    assert b"x-end" in answer.lower()
    assert b"x-hop" not in answer.lower()
    assert b"timeout=1" not in answer


def test_a_compressed_body_is_passed_on_as_it_is_and_never_unpacked(door):
    seen = []
    bomb = gzip.compress(b"0" * 50_000_000)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.headers["content-encoding"], body_of(handler) == bomb))
        whole(handler, bomb, {"Content-Encoding": "gzip"})

    with serving(answer) as url, recording(url, door) as proxy:
        got = send(door, post(bomb, **{"content-encoding": "gzip"}))

    assert seen == [("gzip", True)]
    assert got.endswith(bomb)
    assert proxy.exchanges[0].request_body == proxy.exchanges[0].response_body == bomb


# --- only the model server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected", "kind"),
    [
        ("GET /metrics", 404, "refused_path"),
        ("GET /", 404, "refused_path"),
        ("GET /v1/models/", 404, "refused_path"),
        ("GET /v1/../metrics", 404, "refused_path"),
        ("GET /v1/models/../../metrics", 404, "refused_path"),
        ("GET /v1%2Fmodels", 404, "refused_path"),
        ("GET //v1/models", 404, "refused_path"),
        ("GET /V1/MODELS", 404, "refused_path"),
        ("POST /v1/chat/interactive", 404, "refused_path"),
        ("GET http://127.0.0.1:1/v1/models", 400, "refused_target"),
        ("GET http://example.com/v1/models", 400, "refused_target"),
        ("CONNECT 127.0.0.1:22", 400, "refused_target"),
        ("OPTIONS *", 400, "refused_target"),
        ("DELETE /v1/models", 405, "refused_method"),
        ("HEAD /health", 405, "refused_method"),
    ],
)
def test_all_else_is_refused_by_the_proxy_and_recorded(fake, door, line, expected, kind):
    with recording(fake.url, door) as proxy:
        answer = send(door, f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    assert status(answer) == expected
    assert fake.requests == []
    (stray,) = proxy.exchanges
    assert f"{stray.method} {stray.path}" == line
    assert (stray.status, stray.by_proxy, stray.error_kind, stray.fault) == (expected, True, kind, "client")


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/v1/models?limit=%2F..%2F"])
def test_what_may_be_asked_is_asked_with_its_query_as_it_came(fake, door, path):
    with recording(fake.url, door) as proxy:
        assert (
            status(send(door, f"GET {path} HTTP/1.1\r\nHost: evil.example:80\r\nConnection: close\r\n\r\n".encode()))
            == 200
        )

    assert [request["path"] for request in fake.requests] == [path] == [each.path for each in proxy.exchanges]


def test_an_upgrade_is_not_granted(fake, door):
    with recording(fake.url, door):
        answer = send(
            door, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
        )

    assert status(answer) == 200
    assert "upgrade" not in fake.requests[0]["headers"]


# --- a server in trouble ------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_the_servers_fault_and_the_client_is_told(door):
    with (
        recording(f"http://127.0.0.1:{free_port()}", door) as proxy,
        client(door) as api,
        pytest.raises(openai.InternalServerError, match="cannot be reached"),
    ):
        api.chat.completions.create(**ASK)

    (chat,) = proxy.exchanges
    assert (chat.status, chat.by_proxy, chat.error_kind, chat.fault) == (502, True, "server_down", "server")


@pytest.mark.parametrize(
    "said", [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
def test_a_server_that_hangs_up_or_talks_rubbish_is_the_servers_fault(door, said):
    with raw_server(said) as url, recording(url, door) as proxy:
        answer = send(door, post(b"{}"))

    assert status(answer) == 502
    (chat,) = proxy.exchanges
    assert (chat.by_proxy, chat.error_kind, chat.fault) == (True, "server_broke", "server")


@pytest.mark.parametrize("length", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_an_answer_that_the_server_breaks_off_is_broken_for_the_client_too(door, length):
    piece = b"5\r\nhello\r\n" if length.endswith(b"chunked") else b"hello"

    with raw_server(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + piece) as url, recording(url, door) as proxy:
        answer = send(door, post(b"{}"))

    assert b"hello" in answer
    assert not answer.endswith(b"0\r\n\r\n"), "the client must not take it for a whole answer"
    (chat,) = proxy.exchanges
    assert (chat.status, chat.response_body) == (200, b"hello")
    assert (chat.error_kind, chat.fault, chat.by_proxy) == ("server_broke", "server", False)


def test_the_real_client_notices_a_broken_stream(fake, door):
    fake.will(sse(delta(content="hel"), done=False, cut=True))

    with recording(fake.url, door) as proxy, client(door) as api, pytest.raises((openai.APIError, _transport_error())):
        list(api.chat.completions.create(**ASK, stream=True))

    (turn,) = turns(proxy.exchanges)
    assert (turn.text, [(each.kind, each.fault) for each in turn.problems]) == ("hel", [("server_broke", "server")])


# --- a client that leaves -----------------------------------------------------------------------------------------


def test_a_client_that_leaves_in_the_middle_is_its_own_fault_and_the_server_is_told(door):
    hung_up = threading.Event()

    def stream(handler: BaseHTTPRequestHandler) -> None:
        body_of(handler)
        begin(handler, {"Content-Type": "text/event-stream"})
        handler.wfile.write(event("one"))
        handler.connection.settimeout(WAIT_S)
        if handler.rfile.read(1) == b"":
            hung_up.set()

    with serving(stream) as url, recording(url, door) as proxy:
        with client(door) as api:
            chunks = api.chat.completions.create(**ASK, stream=True)
            next(chunks)
            chunks.close()
        assert hung_up.wait(WAIT_S), "the model would go on generating for nobody"

    (chat,) = proxy.exchanges
    assert (chat.status, chat.error_kind, chat.fault) == (200, "client_gone", "client")
    assert event("one") in chat.response_body


@pytest.mark.parametrize("whole_body", [True, False])
def test_a_client_that_leaves_before_the_answer_or_in_its_own_body_is_its_own_fault(fake, door, whole_body):
    fake.will(Answer(hang=True))
    request = post(b"{}")
    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(request if whole_body else request[:-1])
        until(lambda: proxy.exchanges and (fake.requests or not whole_body))
        sock.close()  # and the recording ends at once, as it does after a script has ended

    (chat,) = proxy.exchanges
    assert (chat.status in (None, 200), chat.error_kind, chat.fault) == (True, "client_gone", "client")
    assert chat.ended_s is not None
    assert len(fake.requests) == whole_body


def test_a_client_that_leaves_a_little_later_than_the_recording_ends_is_gone(fake, door, monkeypatch):
    monkeypatch.setattr(proxy_module, "_GRACE_S", WAIT_S)
    fake.will(Answer(hang=True))

    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(post(b"{}"))
        until(lambda: proxy.exchanges)
        later = threading.Timer(0.1, sock.close)
        later.start()
    later.join()

    assert proxy.exchanges[0].error_kind == "client_gone"


@pytest.mark.parametrize(("done", "kind"), [(True, None), (False, "client_gone")])
def test_a_client_that_leaves_after_the_last_word_of_a_stream_has_had_it_all(fake, door, done, kind):
    """As the OpenAI client may, which does not wait for HTTP's own end. The server leaves that open here."""
    fake.will(sse(delta(content="hello"), delta("stop"), done=done, hang=True))
    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(post(b"{}"))
        heard = b""
        while (b"[DONE]" if done else b"stop") not in heard:
            heard += sock.recv(65536)
        sock.close()
        until(lambda: proxy.exchanges[0].ended_s is not None)

    assert proxy.exchanges[0].error_kind == kind


def test_an_answer_that_nobody_had_finished_when_the_recording_ended_is_nobodys_fault(door):
    done = threading.Event()

    with serving(lambda handler: done.wait(WAIT_S)) as url:
        with recording(url, door) as proxy:
            sock = connect(door)
            sock.sendall(post(b"{}"))
            until(lambda: proxy.exchanges)
        done.set()
        sock.close()

    (chat,) = proxy.exchanges
    assert (chat.status, chat.error_kind, chat.fault) == (None, "unfinished", None)


# --- hostile clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_megabytes_is_refused_and_not_kept(fake, door, chunked):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n".encode()
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n" if chunked else b"x" * 0x10000
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 104857600"

    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(head + length + b"\r\n\r\n")
        for _ in range(1600):
            try:
                sock.sendall(piece)
            except OSError:  # it had its answer, and the proxy has hung up
                break
        answer = received(sock)
        assert status(send(door, GET)) == 200

    big = proxy.exchanges[0]
    assert (big.status, big.error_kind, big.fault) == (413, "too_large", "client")
    assert answer == b"" or status(answer) == 413
    assert len(big.request_body) <= (8 << 20 if chunked else 0)
    assert [request["path"] for request in fake.requests] == ["/v1/models"]


def test_all_bodies_together_have_a_limit_too(fake, door):
    fake.will(completion(), completion())

    with recording(fake.url, door, total_bytes=1000) as proxy:
        answers = [status(send(door, post(b"{}" + b" " * 300))) for _ in range(4)]

    assert answers == [200, 200, 413, 413]
    assert sum(len(each.request_body) + len(each.response_body) for each in proxy.exchanges) <= 1000
    assert proxy.exchanges[1].truncated or proxy.exchanges[2].truncated


def test_an_answer_longer_than_is_kept_is_passed_on_whole(fake, door):
    text = "x" * 5000
    fake.will(completion(text))

    with recording(fake.url, door, body_bytes=1000) as proxy, client(door) as api:
        assert api.chat.completions.create(**ASK).choices[0].message.content == text

    (chat,) = proxy.exchanges
    assert (len(chat.response_body), chat.truncated, chat.error) == (1000, True, None)


def test_more_requests_than_are_recorded_are_refused_and_counted(fake, door):
    with recording(fake.url, door, requests=3) as proxy:
        answers = [status(send(door, GET)) for _ in range(5)]

    assert answers == [200, 200, 200, 429, 429]
    assert (len(proxy.exchanges), proxy.refused_requests, len(fake.requests)) == (3, 2, 3)


def test_more_connections_than_are_allowed_are_refused_until_one_is_free_again(fake, door):
    with recording(fake.url, door, connections=3) as proxy:
        idle = [connect(door) for _ in range(3)]
        assert status(send(door, GET)) == 503
        idle.pop().close()
        until(lambda: status(send(door, GET)) == 200)
        for sock in idle:
            sock.close()

    assert proxy.refused_connections >= 1
    assert len(proxy.exchanges) == 1


def test_who_comes_again_and_again_is_shut_out(fake, door):
    with recording(fake.url, door, arrivals=20) as proxy:

        def shut() -> bool:
            with socket.socket(socket.AF_UNIX) as sock:
                return sock.connect_ex(str(door)) == errno.ECONNREFUSED

        until(shut)

    assert proxy.exchanges == ()


def test_a_slow_loris_is_hung_up_on_while_others_are_served(fake, door):
    with recording(fake.url, door, idle_s=0.3) as proxy:
        slow = [connect(door) for _ in range(20)]
        for at, sock in enumerate(slow):
            sock.sendall(b"GET /v1/models HTTP/1.1\r\nX-Slow: "[: 10 + at])
        assert status(send(door, GET)) == 200
        assert [received(sock) for sock in slow] == [b""] * 20

    assert len(proxy.exchanges) == 1


def test_a_body_that_drips_is_cut_off(fake, door):
    with recording(fake.url, door, upload_s=0.3) as proxy:
        answer = send(door, post(b"x" * 100)[:-50])

    assert status(answer) == 408
    (chat,) = proxy.exchanges
    assert (chat.error_kind, chat.fault, chat.by_proxy) == ("too_slow", "client", True)
    assert fake.requests == []


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"rubbish\r\n\r\n", id="rubbish"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n", id="a huge header"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\n" + b"X: 1\r\n" * 10_000 + b"\r\n", id="many headers"),
        pytest.param(b"GET /v1/models?" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", id="a long path"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", id="a bad header"),
        pytest.param(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="a length below 0"),
        pytest.param(
            b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two lengths that differ",
        ),
        pytest.param(
            b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
            id="a chunk without size",
        ),
    ],
)
def test_what_is_no_http_is_refused_and_recorded_and_the_next_one_is_served(fake, door, sent):
    with recording(fake.url, door) as proxy:
        assert status(send(door, sent)) == 400
        assert status(send(door, GET)) == 200

    stray, *_ = proxy.exchanges
    assert (stray.status, stray.error_kind, stray.fault) == (400, "not_http", "client")
    assert [request["path"] for request in fake.requests] == ["/v1/models"]


@pytest.mark.parametrize("where", [b"GET /v1/models?%s HTTP/1.1\r\n\r\n", b"GET /v1/models HTTP/1.1\r\nX: %s\r\n\r\n"])
@pytest.mark.parametrize("letters", [b"\xff\xfe", "é".encode(), b"\x7f", b"a\tb", b'"<>{}|\\^`', b"%zz", b"#x", b"%00"])
def test_odd_letters_are_passed_on_or_refused_and_never_a_failure_of_the_proxy(fake, door, where, letters):
    request = (where % letters).replace(b"1.1\r\n", b"1.1\r\nHost: x\r\nConnection: close\r\n")

    with recording(fake.url, door) as proxy:
        told = status(send(door, request))

    (odd,) = proxy.exchanges
    assert (told, odd.error_kind, len(fake.requests)) in [(200, None, 1), (400, "not_http", 0)]
    json.dumps(odd.to_dict())


def test_requests_sent_in_one_go_are_answered_in_their_order(door):
    def echo(handler: BaseHTTPRequestHandler) -> None:
        whole(handler, body_of(handler))

    with serving(echo) as url, recording(url, door) as proxy:
        sock = connect(door)
        sock.sendall(b"".join(post(b"number %d" % at, Connection="keep-alive") for at in range(20)))
        answers = b""
        while answers.count(b"number") < 20 and (piece := sock.recv(65536)):
            answers += piece
        sock.close()

    at = [answers.index(b"number %d" % at) for at in range(20)]
    assert at == sorted(at)
    assert [each.request_body for each in proxy.exchanges] == [b"number %d" % at for at in range(20)]


def test_a_client_that_closes_its_half_counts_as_gone_and_the_next_one_is_served(fake, door):
    fake.will(Answer(hang=True), completion())

    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(post(b"{}"))
        until(lambda: fake.requests)
        sock.shutdown(socket.SHUT_WR)
        received(sock)
        assert status(send(door, post(b"{}"))) == 200

    assert [each.error_kind for each in proxy.exchanges] == ["client_gone", None]


# --- its life -----------------------------------------------------------------------------------------------------


def test_dozens_of_proxies_run_in_one_process(fake, tmp_path):
    fake.always = lambda body: completion(body["messages"][0]["content"])

    def ask(number: int) -> str:
        with client(tmp_path / f"{number}.sock") as api:
            messages = [{"role": "user", "content": f"I am {number}"}]
            return api.chat.completions.create(model="fake", messages=messages).choices[0].message.content

    with ExitStack() as stack:
        proxies = [stack.enter_context(recording(fake.url, tmp_path / f"{number}.sock")) for number in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(40)))

    assert answers == [f"I am {number}" for number in range(40)]
    for number, proxy in enumerate(proxies):
        (chat,) = proxy.exchanges
        assert f"I am {number}".encode() in chat.request_body


def test_nothing_of_it_is_left_after_the_block_even_if_that_fails(fake, door):
    before = threading.active_count()

    idle = socket.socket(socket.AF_UNIX)
    idle.settimeout(WAIT_S)

    def fail() -> None:
        idle.connect(str(door))
        raise KeyError("mine")

    with pytest.raises(KeyError), recording(fake.url, door):
        fail()

    assert received(idle) == b""
    assert not door.exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lab3 proxy")]
    assert threading.active_count() <= before + 1, "the fake server's own"


def test_only_the_user_can_open_the_socket(fake, door):
    with recording(fake.url, door):
        assert door.stat().st_mode & 0o777 == 0o600


def test_a_client_that_never_reads_does_not_keep_the_recording_from_its_end(fake, door):
    fake.will(completion("x" * 3_000_000))

    with recording(fake.url, door) as proxy:
        sock = connect(door)
        sock.sendall(post(b"{}"))
        until(lambda: proxy.exchanges and proxy.exchanges[0].response_body)

    assert len(received(sock)) < 3_000_000
    (chat,) = proxy.exchanges
    assert (chat.status, chat.error_kind, chat.fault) == (200, "unfinished", None)


def test_a_socket_that_a_killed_run_left_behind_is_replaced(fake, door):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(door))

    with recording(fake.url, door):
        assert status(send(door, GET)) == 200


@pytest.mark.parametrize("name", ["x" * 120, "missing/model.sock"])
def test_a_socket_that_cannot_be_made_is_the_machines_trouble_with_a_remedy(fake, tmp_path, name):
    with pytest.raises(InfraError, match="cannot listen") as caught, recording(fake.url, tmp_path / name):
        pass

    assert caught.value.todo
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lab3 proxy")]


@pytest.mark.parametrize(
    "upstream", ["", "127.0.0.1:80", "https://127.0.0.1:80", "http://", "http://a/v1", "http://a?x", "http://a:b"]
)
def test_an_address_that_is_no_servers_is_refused(upstream, door):
    with pytest.raises(UsageError, match="not the address"):
        RecordingProxy(upstream, socket=door)


def test_an_exchange_is_json_ready(fake, door):
    fake.will(Answer((b"\xff\xfe",)))

    with recording(fake.url, door) as proxy:
        send(door, post(b"{}"))

    plain = json.loads(json.dumps(proxy.exchanges[0].to_dict()))
    assert (plain["request_body"], plain["response_body"], plain["fault"]) == ("{}", "��", None)


# --- helpers ------------------------------------------------------------------------------------------------------


def recording(url: str, door: Path, **limits: Any) -> RecordingProxy:
    return RecordingProxy(url, socket=door, limits=ProxyLimits(**limits))


@contextmanager
def client(door: Path, headers: dict[str, str] | None = None) -> Iterator[openai.OpenAI]:
    """The real client, through the socket."""
    transport = _http_library().HTTPTransport(uds=str(door))
    with openai.OpenAI(
        base_url="http://0.0.0.0:23333/v1",
        api_key="key-quokka",
        max_retries=0,
        timeout=WAIT_S,
        default_headers=headers,
        http_client=openai.DefaultHttpxClient(transport=transport),
    ) as api:
        yield api


def _transport_error() -> type[Exception]:
    return _http_library().TransportError


@contextmanager
def serving(do: Callable[[BaseHTTPRequestHandler], Any]) -> Iterator[str]:
    """A server whose every request is answered by `do`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            do(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


@contextmanager
def raw_server(said: bytes) -> Iterator[str]:
    """A server that reads one request, says this and hangs up."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(WAIT_S)
            connection.recv(65536)
            connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(WAIT_S)


def body_of(handler: BaseHTTPRequestHandler) -> bytes:
    return handler.rfile.read(int(handler.headers.get("content-length", 0)))


def begin(handler: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
    """The head of an answer that ends with its connection."""
    handler.close_connection = True
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str] | None = None) -> None:
    """An answer after which the connection is kept."""
    handler.send_response(200)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def event(text: str) -> bytes:
    return f"data: {json.dumps(delta(content=text))}\n\n".encode()


def post(body: bytes, **headers: str) -> bytes:
    wanted = {"Host": "x", "Connection": "close", "Content-Length": str(len(body)), **headers}
    lines = [f"POST {CHAT} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def connect(door: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(WAIT_S)
    sock.connect(str(door))
    return sock


def send(door: Path, request: bytes) -> bytes:
    """One request on a connection of its own, and all that comes for it."""
    with connect(door) as sock:
        with suppress(OSError):  # it may be refused before it is whole
            sock.sendall(request)
        return received(sock)


def received(sock: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    parts = []
    with sock, suppress(ConnectionError):
        while piece := sock.recv(65536):
            parts.append(piece)
    return b"".join(parts)


def status(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1])


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that happens by itself."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
