"""The fixtures of these tests: a world to attack, and a server behind a door."""

from __future__ import annotations

import socketserver
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab3.grading import sandbox_stage
from tests.sandbox.world import World, serving


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setattr(sandbox_stage, "_PREFIX", f"lab3-sandbox-{world.mark}-")
    monkeypatch.setenv("LAB3_TEST_SECRET", world.secret)
    try:
        yield world
        assert world.leftovers() == []
        assert {file.read_text() for file in world.canaries} == {world.secret}
        assert world.reached == []
        assert world.run("print('the next one runs')", name="next.py").stdout == "the next one runs\n"
    finally:
        world.close()


@pytest.fixture
def echo(tmp_path) -> Iterator[Path]:
    """A socket behind which whatever is sent comes back."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while data := self.request.recv(1 << 16):
                    self.request.sendall(data)

    with serving(Echo, tmp_path / "echo.sock") as path:
        yield path
