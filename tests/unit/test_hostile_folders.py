"""Folders that are handed in to break the collector, or by accident."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading import files
from lab3.grading.collector import collect
from tests.unit.test_collector import folder, kinds, lab, of, put, put_model, taken
from tests.unit.test_lab3_toml import toml
from tests.unit.test_student_scripts import CHAT

__all__ = ["folder"]


def test_thirty_thousand_files_are_not_all_looked_at(folder: Path):
    lab(folder)
    (folder / "zz").mkdir()
    for number in range(30_000):
        os.close(os.open(folder / "zz" / f"{number}.py", os.O_CREAT))

    found = collect(folder)

    assert taken(found)["chat"] == "internlm2_5.py"
    assert "too_many_files" in kinds(found)


def test_many_scripts_are_read_up_to_a_number_and_the_said_one_first(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab3.grading.collector.MOST_READ", 3)
    put(folder, **{f"{letter}_dot_py": f"{letter} = 1" for letter in "abcdef"}, z_dot_py=CHAT)
    toml(folder, 'chat = "z.py"')

    found = collect(folder)

    assert found.doors("chat") == (("0.0.0.0", 23333),)
    assert any("7 scripts and texts, of which 3 were read" in each.what for each in found.problems)


def test_links_are_not_followed_and_cannot_go_round(folder: Path, tmp_path: Path):
    put_model(tmp_path / "other-student" / "w4a16")
    (tmp_path / "other-student" / "chat.py").write_text(CHAT)
    (folder / "round").symlink_to(folder)
    (folder / "a").mkdir()
    (folder / "a" / "up").symlink_to("..")
    (folder / "theirs").symlink_to(tmp_path / "other-student")
    (folder / "chat.py").symlink_to(tmp_path / "other-student" / "chat.py")
    (folder / "report.pdf").symlink_to("/etc/passwd")
    (folder / "lab3.toml").symlink_to("/etc/passwd")

    found = collect(folder)

    assert found.found == ()
    assert any("6 links" in each.what for each in found.problems)


def test_a_script_of_fifty_megabytes_is_not_read(folder: Path):
    (folder / "chat.py").write_text(CHAT + "#" * (50 << 20))
    put(folder, small_dot_py=CHAT)

    found = collect(folder)

    assert taken(found)["chat"] == "small.py"
    assert any("chat.py has more than 1024 KiB" in each.what for each in found.problems)


def test_binary_junk_pipes_and_devices_do_no_harm(folder: Path):
    (folder / "junk.py").write_bytes(bytes(range(256)) * 100)
    (folder / "junk.sh").write_bytes(b"lmdeploy serve api_server \xff\xfe\0m --tp 1\n")
    (folder / "junk.md").write_bytes(os.urandom(5000) + b"\n```\nlmdeploy serve api_server\n")
    (folder / "junk.ipynb").write_bytes(b"{" * 3000)
    (folder / "deep.ipynb").write_text('{"cells":' + "[" * 100_000)
    (folder / "odd.ipynb").write_text('{"cells": [1, null, {"source": [3]}], "worksheets": 5}')
    put(folder, m__config_dot_json="[" * 100_000, n__config_dot_json='{"quantization_config": 3}')
    os.mkfifo(folder / "pipe.py")

    found = collect(folder)

    assert found.pick("model") is None
    assert found.pick("chat") is None
    assert found.serve is not None
    json.dumps(found.to_dict())


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a link"])
def test_a_file_that_became_something_else_since_it_was_listed_is_refused(folder: Path, kind: str):
    path = folder / "a.py"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/etc/passwd")

    with pytest.raises(UsageError, match=r"is no regular file|cannot be read"):
        files.read_text(path)


def test_folders_without_end_are_told_and_left(folder: Path):
    deep = folder
    for _ in range(60):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "chat.py").write_text(CHAT)

    found = collect(folder)

    assert found.pick("chat") is None
    assert "too_deep" in kinds(found)


def test_names_with_line_ends_escapes_and_bad_bytes_are_told_printably(folder: Path):
    for number, name in enumerate((b"a\nb.py", b"\x1b[31mred.py", b"\xff\xfe.py", "\u202egnp.py".encode())):
        (folder / os.fsdecode(name)).write_text(CHAT + f"# {number}")

    found = collect(folder)

    assert found.pick("chat") is not None
    assert len(of(found, "chat").others) == 3
    text = json.dumps(found.to_dict(), ensure_ascii=False)
    assert text.isprintable()
    text.encode()
    assert "a\\\\nb.py" in text
    assert "\\\\xff\\\\xfe.py" in text


def test_what_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    lab(folder)
    (folder / "locked.py").write_text(CHAT)
    monkeypatch.setattr(files.os, "open", _refusing("locked.py", os.open))

    found = collect(folder)

    assert "unreadable" in kinds(found)
    assert taken(found)["chat"] == "internlm2_5.py"


def _refusing(name: str, really):  # root reads everything, so the refusal is played
    def opened(path, *arguments, **more):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *arguments, **more)

    return opened


def test_more_text_than_anybody_reads_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab3.grading.collector.MOST_CHARACTERS", 2 * len(CHAT))
    put(folder, a_dot_py=CHAT, b_dot_py="x = 1", c_dot_py=CHAT + "#")

    found = collect(folder)

    assert taken(found)["chat"] == "a.py"
    assert any("nothing after c.py was looked at" in each.what for each in found.problems)
