"""A streamed completion that can be broken off at any moment: the request, awaited instead of waited for.

`lab3.chat.ask` is the same for programs. The page needs one that ends at once when its user presses Stop, even while
the server has sent nothing yet; closing the connection is how LMDeploy learns that nobody wants the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab3.chat import STREAMED, Gathered, Reply
from lab3.errors import InfraError, Lab3Error
from lab3.openai_client import (
    SENT_HEADERS,
    api_url,
    as_dict,
    explain,
    is_this_machine,
    list_models,
    open_client,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

WAIT_S = 120.0  # for the next piece of an answer; as a whole it may take as long as its reader likes


@dataclass(frozen=True)
class Endpoint:
    """A server to talk to."""

    base_url: str
    api_key: str = "none"


def models_of(where: Endpoint, *, timeout_s: float = 5.0) -> tuple[str, ...]:
    """The names in /v1/models. Raises Lab3Error."""
    with open_client(where.base_url, api_key=where.api_key, timeout_s=timeout_s) as client:
        return list_models(client)


async def stream(
    where: Endpoint, request: Mapping[str, Any], *, clock: Callable[[], float] = time.perf_counter
) -> AsyncGenerator[Gathered | Reply, None]:
    """The answer while it comes, after each piece, and at the end the whole of it as a Reply.

    Entries of `request` that are None are not sent. Closing the iterator closes the connection. Raises as
    `lab3.chat.chat` does, but bounds only the wait for each piece.
    """
    body = {name: value for name, value in request.items() if value is not None} | STREAMED
    start, gathered, chunks = clock(), Gathered(), None
    async with _client(where) as client:
        try:
            create: Any = client.chat.completions.create
            chunks = await create(**body)
            async for chunk in chunks:
                gathered.add(as_dict(chunk), at_s=clock() - start)
                yield gathered
            if not gathered.rest:
                raise InfraError(f"{where.base_url} sent no answer of the OpenAI API.", kind="not_an_api")
            gathered.check_ended()
        except Exception as error:
            raise await asyncio.to_thread(_explained, error, where) from error
        finally:
            if chunks is not None:
                await chunks.close()
    yield gathered.reply(asked=str(body["model"]), seconds=clock() - start)


@asynccontextmanager
async def _client(where: Endpoint) -> AsyncIterator[AsyncOpenAI]:
    """As `lab3.openai_client.open_client`: nothing from the environment is sent, no retries, no redirects."""
    import openai

    url = api_url(where.base_url)

    async def scrub(request: Any) -> None:
        for name in [name for name in request.headers if name.lower() not in SENT_HEADERS]:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {where.api_key}"
        request.headers["user-agent"] = "lab3"

    timeout = openai.Timeout(WAIT_S, connect=10.0)
    async with openai.DefaultAsyncHttpxClient(
        trust_env=not is_this_machine(url),
        follow_redirects=False,
        verify=url.startswith("https:"),
        timeout=timeout,
        event_hooks={"request": [scrub]},
    ) as http_client:
        yield openai.AsyncOpenAI(
            base_url=url, api_key=where.api_key, max_retries=0, timeout=timeout, http_client=http_client
        )


def _explained(error: Exception, where: Endpoint) -> Lab3Error:
    """Blocks: of a 404 it asks the server for its models."""
    with open_client(where.base_url, api_key=where.api_key, timeout_s=5.0) as client:
        return explain(error, client, timeout_s=WAIT_S)
