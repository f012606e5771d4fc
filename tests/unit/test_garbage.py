"""Garbage is looked for rarely, and never more often than somebody has asked for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from lab3.garbage import collect_rarely


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "after"),
    [((700, 10, 10), (50_000, 10, 10)), ((2_000, 10, 0), (50_000, 10, 0)), ((90_000, 5, 5), (90_000, 5, 5))],
)
def test_it_is_looked_for_rarely(before: tuple[int, int, int], after: tuple[int, int, int]):
    gc.set_threshold(*before)
    collect_rarely()
    assert gc.get_threshold() == after


def test_who_wants_none_gets_none():
    gc.set_threshold(0, 10, 10)
    collect_rarely()
    assert gc.get_threshold()[0] == 0
