"""A user's conversation with a model: its turns, and one more turn as it happens, with the calls of functions in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lab3.chat import Gathered, Message, RawCall, Reply
from lab3.funcall import Call, Tool, echo, fresh_id, run_call, tool_schema
from lab3.openai_client import first_model, open_client
from lab3.web.faults import Fault, failed_answer, fault_of
from lab3.web.wire import Endpoint, stream

MAX_ROUNDS = 6
T = TypeVar("T")


@dataclass(frozen=True)
class Wishes:
    """What a request asks for beside the text; `functions` by name, none for plain chat."""

    model: str | None = None
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = 512
    functions: Mapping[str, Tool] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """How fast an answer comes. While it does, `tokens` counts the pieces that came; at the end the server's count."""

    ttft_s: float | None = None
    tokens_per_second: float | None = None
    tokens: int | None = None


@dataclass
class Turn:
    """What the user said and what came of it: texts and calls in their order (a RawCall is still running)."""

    said: str
    began_at_s: float = field(default_factory=time.monotonic)
    parts: list[str | RawCall | Call] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)
    finish_reason: str | None = None
    fault: Fault | None = None
    too_many_rounds: bool = False
    stopped: bool = False
    done: bool = False
    sent: list[Message] = field(default_factory=list)  # what later requests carry of it; none if nothing was answered

    @property
    def text(self) -> str:
        """The model's text without its calls."""
        return "\n\n".join(part for part in self.parts if isinstance(part, str) and part)

    @property
    def calls(self) -> list[Call]:
        """The calls that were run."""
        return [part for part in self.parts if isinstance(part, Call)]


class Conversation:
    """One user's, in one place of the page. `stop` ends the turn that is being answered."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._stop: asyncio.Event | None = None

    @property
    def running(self) -> bool:
        """Whether a turn is being answered."""
        return self._stop is not None

    def stop(self) -> None:
        """End the turn that is being answered, if there is one."""
        if self._stop is not None:
            self._stop.set()

    def undo(self) -> str:
        """Forget the last turn; what the user had said in it ("" if there was none)."""
        return self.turns.pop().said if self.turns and not self.running else ""

    def clear(self) -> None:
        """Forget all turns, and end the one that is being answered."""
        self.stop()
        self.turns = []

    def messages(self, system: str) -> list[Message]:
        """What a request carries of all this."""
        told: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        return told + [message for turn in self.turns for message in turn.sent]

    async def say(self, text: str, wishes: Wishes, where: Endpoint) -> AsyncGenerator[Turn, None]:
        """Ask, and give the turn each time that it has grown. What goes wrong is in the turn; nothing is raised."""
        if self.running or not text.strip():
            return
        self._stop = stop = asyncio.Event()
        turn, history = Turn(said=text), self.messages(wishes.system)
        self.turns.append(turn)
        try:
            yield turn
            answering = _rounds(turn, history, wishes, where)
            async with aclosing(answering), aclosing(until(stop, answering)) as pieces:
                async for _ in pieces:
                    yield turn
            turn.stopped = stop.is_set()
        except Exception as error:
            turn.fault = fault_of(error, where.base_url)
        finally:
            turn.done, self._stop = True, None
            _keep(turn)
        yield turn


async def until(stop: asyncio.Event, pieces: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The pieces until `stop` is set, which cancels the wait for the next one."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            coming = asyncio.ensure_future(_next(pieces))
            try:
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            if coming.cancelled() or (piece := coming.result()) is None:
                return
            yield piece
    finally:
        stopping.cancel()


async def _next(pieces: AsyncGenerator[T, None]) -> T | None:
    """Not `anext` alone: a task cannot end in StopAsyncIteration."""
    return await anext(pieces, None)


async def _rounds(turn: Turn, history: list[Message], wishes: Wishes, where: Endpoint) -> AsyncGenerator[Turn, None]:
    """Request, calls, request with their results, until the model answers. The turn grows on the way."""
    model = wishes.model or await asyncio.to_thread(_first_model, where)
    request: dict[str, Any] = {"model": model, "temperature": wishes.temperature, "top_p": wishes.top_p}
    request["max_tokens"] = wishes.max_tokens
    if wishes.functions:
        request |= {"tools": [tool_schema(tool) for tool in wishes.functions.values()], "tool_choice": "auto"}
    exchange: list[Message] = [{"role": "user", "content": turn.said}]
    for _ in range(MAX_ROUNDS):
        turn.parts.append("")
        reply: Reply | None = None
        async with aclosing(stream(where, request | {"messages": history + exchange})) as answer:
            async for piece in answer:
                turn.parts[-1] = piece.text
                turn.figures = _figures(piece)
                reply = piece if isinstance(piece, Reply) else None
                yield turn
        if reply is None:
            return
        turn.finish_reason = reply.finish_reason
        if reply.finish_reason == "error":
            turn.fault = failed_answer(reply.text)
            return
        calls: list[Call] = []
        for raw in reply.tool_calls:
            turn.parts.append(raw)
            yield turn
            call_id = fresh_id(raw, {call.id for call in turn.calls})
            call = await asyncio.to_thread(run_call, raw, wishes.functions, call_id=call_id)
            turn.parts[-1] = call
            calls.append(call)
            yield turn
        exchange += echo(reply.text, calls)
        if not calls:
            turn.sent = exchange
            return
    turn.too_many_rounds = True


def _keep(turn: Turn) -> None:
    """Of an answer that did not come to its end, what came is kept; without any, the question is forgotten too."""
    if not turn.sent and not turn.fault and turn.text:
        turn.sent = [{"role": "user", "content": turn.said}, {"role": "assistant", "content": turn.text}]


def _figures(piece: Gathered | Reply) -> Figures:
    if isinstance(piece, Reply):
        tokens = piece.usage.completion_tokens if piece.usage else None
        return Figures(piece.ttft_s, piece.tokens_per_second, tokens)
    return Figures(piece.first_s, piece.speed(piece.pieces), piece.pieces)


def _first_model(where: Endpoint) -> str:
    with open_client(where.base_url, api_key=where.api_key, timeout_s=10.0) as client:
        return first_model(client)


async def merged(*sources: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What all of them give, as it comes."""
    coming = {asyncio.ensure_future(_next(source)): source for source in sources}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                source = coming.pop(task)
                if (piece := task.result()) is not None:
                    coming[asyncio.ensure_future(_next(source))] = source
                    yield piece
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
