"""A folder in lab3's cache is made once, whoever else wants it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from lab3 import cache
from lab3.errors import InfraError


def made(tmp_path: Path, said: list[str]) -> Path:
    return cache.made_once(
        tmp_path / "root" / "folder",
        lambda folder: folder.mkdir(),
        what="the thing",
        lock=tmp_path / "root" / "lock",
        progress=lambda message, **_: said.append(message),
    )


def test_it_waits_for_another_process_and_says_so_and_then_makes_nothing(tmp_path: Path):
    (tmp_path / "root").mkdir()
    other, said = FileLock(tmp_path / "root" / "lock", thread_local=False), []

    def finish() -> None:
        (tmp_path / "root" / "folder").mkdir()  # a second one would be an error
        other.release()

    with other:
        timer = threading.Timer(0.5, finish)
        timer.start()
        assert made(tmp_path, said) == tmp_path / "root" / "folder"
    timer.join()
    assert said == ["waiting for another process that prepares the thing"]


def test_nobody_is_waited_for_where_nobody_is(tmp_path: Path):
    said: list[str] = []
    assert made(tmp_path, said).is_dir()
    assert made(tmp_path, said).is_dir()
    assert said == []


def test_a_process_that_never_finishes_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "_LOCK_TIMEOUT_S", 0.2)
    (tmp_path / "root").mkdir()
    with FileLock(tmp_path / "root" / "lock"), pytest.raises(InfraError, match="the thing was not ready") as caught:
        made(tmp_path, [])
    assert str(tmp_path / "root" / "lock") in caught.value.why


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(InfraError, match="cannot keep the thing"):
        made(tmp_path, [])
