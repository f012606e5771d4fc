"""Folders for a while."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab3.scratch import scratch


def aged(folder: Path) -> Path:
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))
    return folder


def test_it_is_gone_afterwards_whatever_happens(tmp_path: Path):
    def fails() -> None:
        with scratch("x-", tmp_path) as folder:
            (folder / "file").write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from lab3.scratch import scratch\n"
        "with scratch('x-', Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    aged(left)
    with scratch("x-", tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_somebody_holds_stays_however_old(tmp_path: Path):
    with scratch("x-", tmp_path) as held:
        aged(held)
        with scratch("x-", tmp_path):
            assert held.is_dir()


def test_a_link_and_another_prefix_are_not_touched(tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "x-link").symlink_to(tmp_path / "precious")
    aged(tmp_path / "precious")
    os.utime(tmp_path / "x-link", (0, 0), follow_symlinks=False)
    with scratch("x-", tmp_path):
        pass
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "x-link").is_symlink()
