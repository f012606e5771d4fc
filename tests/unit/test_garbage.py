"""Garbage is looked for rarely, and never more often than somebody has asked for."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab3.garbage import all_of_it_stays, collect_rarely


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


@pytest.mark.parametrize(("times", "frozen"), [(0, False), (1, True), (2, True)])
def test_a_process_that_ends_looks_for_none(times: int, frozen: bool):
    # What is registered first is called last.
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import lab3.garbage"
    calls = "; lab3.garbage.collect_rarely()" * times
    done = subprocess.run([sys.executable, "-c", code + calls], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(frozen)]


@pytest.mark.parametrize("enabled", [True, False])
def test_none_is_looked_for_while_all_of_it_stays(enabled: bool):
    if not enabled:
        gc.disable()
    frozen = gc.get_freeze_count()
    try:
        with all_of_it_stays():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() > frozen
    finally:
        gc.enable()
        gc.unfreeze()
