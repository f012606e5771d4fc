"""What the page's parts share: words that change with the language, and the settings as one value."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from lab3.funcall import Tool
from lab3.web.talk import Wishes
from lab3.web.words import Language, word

Component = TypeVar("Component")
T = TypeVar("T")
Text = str | Callable[[Language], Any]
SHOW_EVERY_S = 0.08


class Labels:
    """The components that show words, and which: `add(button, value="send")`."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._words: list[tuple[Any, dict[str, Text]]] = []

    def add(self, component: Component, **properties: Text) -> Component:
        """`component`, with its properties in the page's first language; each is a word's key, or gives a value."""
        for name, text in properties.items():
            setattr(component, name, _said(text, self.language))
        self._words.append((component, properties))
        return component

    @property
    def components(self) -> list[Any]:
        """All of them, in the order of `updates`."""
        return [component for component, _ in self._words]

    def updates(self, language: Language) -> list[Any]:
        """What turns them into the language."""
        import gradio as gr

        return [
            gr.update(**{name: _said(text, language) for name, text in properties.items()})
            for _, properties in self._words
        ]


@dataclass(frozen=True)
class Wanted:
    """The components of the settings."""

    model: Any
    system: Any
    temperature: Any
    top_p: Any
    max_tokens: Any

    @property
    def inputs(self) -> list[Any]:
        """In the order that `wishes` takes their values."""
        return [self.model, self.system, self.temperature, self.top_p, self.max_tokens]


@dataclass(frozen=True)
class Redrawn:
    """What a part shows of its user's conversations (`states`), and how that is rendered in a language."""

    states: list[Any]
    outputs: list[Any]
    redraw: Callable[..., list[Any]]


async def thinned(
    turns: AsyncGenerator[T, None], *, clock: Callable[[], float] = time.monotonic
) -> AsyncGenerator[T, None]:
    """Not more of them than a browser can draw: the first, some, and the last."""
    last: T | None = None
    shown_at_s = -SHOW_EVERY_S
    async with aclosing(turns) as all_of_them:
        async for last in all_of_them:
            if clock() - shown_at_s >= SHOW_EVERY_S:
                shown_at_s = clock()
                yield last
                last = None
    if last is not None:
        yield last


def wishes(values: tuple[Any, ...], functions: Mapping[str, Tool]) -> Wishes:
    """The settings' values as a request's."""
    model, system, temperature, top_p, max_tokens = values
    return Wishes(
        model=model or None,
        system=system or "",
        temperature=temperature,
        top_p=top_p,
        max_tokens=int(max_tokens),
        functions=functions,
    )


def _said(text: Text, language: Language) -> Any:
    return word(text, language) if isinstance(text, str) else text(language)
