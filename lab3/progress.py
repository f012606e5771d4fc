"""How long work tells the user where it is: one callable, so that libraries need no terminal."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a short message, and with `done` of `total` when the work can be counted."""

    def __call__(self, message: str, *, done: float | None = None, total: float | None = None) -> None: ...


def silent(message: str, *, done: float | None = None, total: float | None = None) -> None:
    """Progress that says nothing."""
