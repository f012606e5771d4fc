"""A conversation without its page: what is sent, what is kept, and that a stopped request is over at the server too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import pytest

from lab3.funcall import add, mul
from lab3.web.talk import MAX_ROUNDS, Conversation, Turn, Wishes, merged, until
from lab3.web.wire import Endpoint
from tests import fake_openai as fake
from tests.fake_openai import FakeOpenAI, delta, fake_openai, free_port, sse

TOOLS = {"add": add, "mul": mul}
CHUNK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + json.dumps(delta(content="Hel")).encode()


@pytest.fixture
def server():
    with fake_openai() as running:
        yield running


def said(server: FakeOpenAI, *texts: str, talk: Conversation | None = None, **wishes) -> Conversation:
    """What became of saying these."""
    talk = talk or Conversation()

    async def say_all() -> None:
        for text in texts:
            async for _ in talk.say(text, Wishes(**({"model": "fake"} | wishes)), Endpoint(server.url)):
                pass

    asyncio.run(say_all())
    return talk


def told(text: str) -> fake.Answer:
    return sse(*(delta(content=piece) for piece in text.split()), delta("stop"), fake.USAGE_CHUNK)


def called(name: str, arguments: str, id: str = "c1") -> fake.Answer:
    call = {"index": 0, **fake.call(name, arguments, id=id)}
    return sse(delta(tool_calls=[call]), delta("tool_calls"), fake.USAGE_CHUNK)


# --- what is sent and kept ----------------------------------------------------------------------------------------


def test_the_request_has_the_settings_and_the_whole_conversation(server: FakeOpenAI):
    server.will(told("one"), told("two"))
    said(server, "first", "second", system="Be brief.", temperature=0.5, top_p=0.9, max_tokens=7)
    body = server.bodies[1]
    assert [(each["role"], each["content"]) for each in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "second"),
    ]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.5, 0.9, 7, "fake")
    assert "tools" not in body


def test_without_a_chosen_model_the_first_of_the_server_is_asked(server: FakeOpenAI):
    server.will(told("hi"))
    said(server, "hello", model=None)
    assert server.bodies[0]["model"] == "fake"


def test_nothing_of_the_environment_is_sent(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.will(told("hi"))
    said(server, "hello")
    headers = server.requests[-1]["headers"]
    assert headers["authorization"] == "Bearer none"
    assert "secret" not in json.dumps(headers)


def test_what_failed_is_not_sent_again_and_the_next_message_works(server: FakeOpenAI):
    server.will(fake.as_json({"message": "CUDA out of memory"}, status=500), told("fine"))
    talk = said(server, "too much", "hello")
    assert [turn.fault.key if turn.fault else None for turn in talk.turns] == ["out_of_memory", None]
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "hello"}]


def test_an_answer_that_breaks_off_is_shown_as_far_as_it_came(server: FakeOpenAI):
    server.will(sse(delta(content="Once upon"), done=False, cut=True))
    turn = said(server, "a story").turns[0]
    assert turn.fault is not None
    assert turn.fault.key == "broke_off"
    assert turn.text == "Once upon"
    assert turn.sent == []


def test_an_answer_that_the_engine_ended_in_an_error_is_a_fault(server: FakeOpenAI):
    server.will(sse(delta(content="internal error"), delta("error"), fake.USAGE_CHUNK))
    turn = said(server, "hello").turns[0]
    assert turn.fault is not None
    assert turn.fault.key == "server_failed"


def test_what_is_no_stream_of_the_api_is_told_so(server: FakeOpenAI):
    server.will(fake.Answer((b"<html>a proxy</html>",), content_type="text/html"))
    turn = said(server, "hello").turns[0]
    assert turn.fault is not None
    assert turn.fault.key == "not_an_api"


def test_no_server_is_a_fault_and_not_an_exception():
    talk, gone = Conversation(), Endpoint(f"http://127.0.0.1:{free_port()}")

    async def say() -> list[Turn]:
        return [turn async for turn in talk.say("hello", Wishes(), gone)]

    turn = asyncio.run(say())[-1]
    assert turn.fault is not None
    assert turn.fault.key == "down"
    assert gone.base_url in turn.fault.sentence("zh")


def test_the_figures_grow_with_the_answer_and_end_as_the_server_counts(server: FakeOpenAI):
    server.will(told("one two three four"))  # four pieces, and usage says three tokens
    seen = []

    async def say() -> None:
        async for turn in Conversation().say("count", Wishes("fake"), Endpoint(server.url)):
            seen.append(turn.figures)

    asyncio.run(say())
    assert [each.tokens for each in seen][:5] == [None, 1, 2, 3, 4]
    assert seen[-1].tokens == 3
    assert all(each.ttft_s is not None for each in seen[1:])
    assert seen[1].tokens_per_second is None
    assert seen[-1].tokens_per_second is not None


def test_undo_gives_the_text_back_and_forgets_the_turn(server: FakeOpenAI):
    server.will(told("one"), told("two"))
    talk = said(server, "first", "second")
    assert talk.undo() == "second"
    assert talk.messages("") == [{"role": "user", "content": "first"}, {"role": "assistant", "content": "one"}]
    talk.clear()
    assert (talk.turns, talk.undo()) == ([], "")


def test_nothing_said_is_nothing_asked(server: FakeOpenAI):
    assert said(server, "", "  \n").turns == []
    assert server.bodies == []


# --- functions ----------------------------------------------------------------------------------------------------


def test_calls_are_run_in_their_order_and_their_results_go_back(server: FakeOpenAI):
    server.will(called("add", '{"a": 3, "b": 5}'), called("mul", '{"a": 8, "b": 2}', id="c2"), told("16"))
    turn = said(server, "Compute (3+5)*2", functions=TOOLS).turns[0]
    assert [(call.name, call.result) for call in turn.calls] == [("add", 8), ("mul", 16)]
    assert turn.text == "16"
    last = server.bodies[2]["messages"]
    assert [each["role"] for each in last] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [each["content"] for each in last if each["role"] == "tool"] == ["8", "16"]
    assert {each["function"]["name"] for each in server.bodies[0]["tools"]} == {"add", "mul"}


def test_a_call_is_seen_before_and_after_it_runs(server: FakeOpenAI):
    server.will(called("add", '{"a": 3, "b": 5}'), told("8"))
    seen = []

    async def say() -> None:
        async for turn in Conversation().say("3+5", Wishes("fake", functions=TOOLS), Endpoint(server.url)):
            seen.append([type(part).__name__ for part in turn.parts])

    asyncio.run(say())
    assert seen.index(["str", "RawCall"]) < seen.index(["str", "Call"]) < seen.index(["str", "Call", "str"])


@pytest.mark.parametrize(
    ("name", "arguments", "outcome"),
    [
        ("add", '{"a": "__import__(\'os\')", "b": 1}', "invalid_arguments"),
        ("add", "a=3, b=5", "not_json"),
        ("system", '{"command": "id"}', "unknown_function"),
    ],
)
def test_what_cannot_be_run_is_shown_and_told_to_the_model(server: FakeOpenAI, name, arguments, outcome):
    server.will(called(name, arguments), told("sorry"))
    turn = said(server, "do it", functions=TOOLS).turns[0]
    assert turn.calls[0].outcome == outcome
    assert "error" in server.bodies[1]["messages"][-1]["content"]
    assert turn.text == "sorry"


def test_functions_that_are_switched_off_are_not_run(server: FakeOpenAI):
    server.will(called("mul", '{"a": 1, "b": 1}'), told("no"))
    turn = said(server, "1*1", functions={"add": add}).turns[0]
    assert turn.calls[0].outcome == "unknown_function"


def test_a_model_that_calls_for_ever_is_stopped(server: FakeOpenAI):
    server.always = lambda body: called("add", '{"a": 1, "b": 1}')
    turn = said(server, "1+1", functions=TOOLS).turns[0]
    assert turn.too_many_rounds
    assert len(turn.calls) == len(server.bodies) == MAX_ROUNDS
    assert len({call.id for call in turn.calls}) == MAX_ROUNDS


# --- stopped ------------------------------------------------------------------------------------------------------


def with_silent_server(
    use: Callable[[Endpoint, asyncio.Event, asyncio.Event], Awaitable[None]], begins_with: bytes
) -> None:
    """Run `use` with a server that sends this and then nothing; (its endpoint, asked, the client has hung up)."""

    async def run() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(begins_with and begins_with + b"\n\n")
            asked.set()
            with suppress(ConnectionError):
                while await reader.read(2**16):
                    pass
            left.set()
            writer.close()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            await use(Endpoint(f"http://127.0.0.1:{port}"), asked, left)

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize(("begins_with", "kept"), [(b"", ""), (CHUNK, "Hel")], ids=["before", "after"])
def test_stop_ends_the_request_at_the_server_before_and_after_the_first_token(begins_with: bytes, kept: str):
    async def use(where: Endpoint, asked: asyncio.Event, left: asyncio.Event) -> None:
        talk = Conversation()

        async def say() -> None:
            async for turn in talk.say("hello", Wishes("fake"), where):
                if turn.text:
                    talk.stop()

        saying = asyncio.ensure_future(say())
        await asked.wait()
        if not kept:
            assert talk.running
            talk.stop()
        await saying
        await left.wait()
        turn = talk.turns[0]
        assert (turn.stopped, turn.text, turn.fault, talk.running) == (True, kept, None, False)
        assert [each["content"] for each in talk.messages("")] == (["hello", kept] if kept else [])

    with_silent_server(use, begins_with)


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_a_page_that_goes_away_ends_the_request_at_the_server(how: str):
    async def use(where: Endpoint, asked: asyncio.Event, left: asyncio.Event) -> None:
        talk = Conversation()

        async def say() -> None:
            async with aclosing(talk.say("hello", Wishes("fake"), where)) as turns:
                async for turn in turns:
                    if turn.text and how == "closed":
                        return

        saying = asyncio.ensure_future(say())
        await asked.wait()
        if how == "cancelled":
            saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        await left.wait()
        assert not talk.running

    with_silent_server(use, CHUNK)


def test_one_turn_at_a_time():
    async def use(where: Endpoint, asked: asyncio.Event, left: asyncio.Event) -> None:
        talk = Conversation()
        async with aclosing(talk.say("one", Wishes("fake"), where)) as turns:
            await anext(turns)
            assert [turn async for turn in talk.say("two", Wishes("fake"), where)] == []
            assert talk.undo() == ""
            assert [turn.said for turn in talk.turns] == ["one"]

    with_silent_server(use, b"")


# --- iterators ----------------------------------------------------------------------------------------------------


async def counted(*numbers: int):
    for number in numbers:
        await asyncio.sleep(0)
        yield number


def test_pieces_come_until_they_end_or_fail():
    async def failing():
        yield 1
        raise ValueError("broken")

    async def run() -> None:
        assert [each async for each in until(asyncio.Event(), counted(1, 2, 3))] == [1, 2, 3]
        with pytest.raises(ValueError, match="broken"):
            [each async for each in until(asyncio.Event(), failing())]

    asyncio.run(run())


def test_what_is_merged_comes_whole():
    async def run() -> None:
        assert sorted([each async for each in merged(counted(1, 2, 3), counted(4), counted())]) == [1, 2, 3, 4]

    asyncio.run(run())
