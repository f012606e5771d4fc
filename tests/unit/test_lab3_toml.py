"""lab3.toml: a student says what is what, and is told what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab3.errors import UsageError
from lab3.grading.collector import collect
from lab3.grading.settings import Settings, read_settings
from tests.unit.test_collector import folder, lab, of, put, put_model, taken
from tests.unit.test_serve_command import LAB
from tests.unit.test_student_scripts import CHAT, TOOLS

__all__ = ["folder"]


def toml(folder: Path, *lines: str) -> None:
    (folder / "lab3.toml").write_text("\n".join(["[submission]", *lines]))


def test_lab3_toml_is_believed(folder: Path):
    lab(folder)
    put(folder, mine__one_dot_py="print('hi')", two_dot_py=TOOLS + "#", r_dot_txt="")
    put(folder, go_dot_sh="lmdeploy serve api_server x")
    put_model(folder / "m2")
    toml(folder, 'student = "Zhang San"', 'chat = "mine/one.py"', 'tools = "two.py"', 'serve = "go.sh"')
    (folder / "lab3.toml").write_text((folder / "lab3.toml").read_text() + '\nmodel = "m2"\nreport = "r.txt"')

    found = collect(folder)

    assert taken(found) == {
        "model": "m2",
        "chat": "mine/one.py",
        "tools": "two.py",
        "serve": "go.sh",
        "report": "r.txt",
    }
    assert {each.by for each in found.found} == {"lab3.toml"}
    assert found.student == "Zhang San"
    assert found.serve.model == "x"
    assert any(other.startswith("internlm2_5_func.py") for other in of(found, "tools").others)


def test_lab3_toml_may_hold_the_command_itself(folder: Path):
    put(folder, start_dot_sh=LAB)
    toml(folder, f"serve = '''{LAB}'''".replace("23333", "9999"))

    found = collect(folder)

    assert found.serve.port == 9999
    assert taken(found)["serve"] == "lab3.toml"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('chats = "a.py"', "has no key in \\[submission\\] named chats"),
        ("chat = 3", "chat is a number"),
        ("chat = ['a.py']", "chat is a list"),
        ('chat = ""', "chat is empty"),
        ("chat = true", "chat is true or false"),
        ("chat = 1979-05-27", "chat is a date"),
        ('chat = "../a.py"', "leads out of the folder"),
        ('chat = "/etc/passwd"', "leads out of the folder"),
        ('chat = "link.py"', "is a link"),
        ('chat = "nowhere.py"', "no such file"),
        ('chat = "start.sh"', "no .py or .ipynb file"),
        ('chat = "a\\u0000.py"', "leads out of the folder"),
        (f'chat = "{"a" * 5000}"', "leads out of the folder"),
        ('model = "/root"', "outside of the folder"),
        ('model = "empty"', "no config.json"),
        ('model = "linked"', "is a link"),
        ('chat = "a.py', "is no TOML"),
        ("[other]", "has no table named other"),
    ],
)
def test_a_mistake_in_lab3_toml_is_told_and_what_it_says_is_looked_for_instead(folder: Path, line: str, what: str):
    put(folder, a_dot_py=CHAT, start_dot_sh=LAB, empty__x="")
    put_model(folder.parent / "elsewhere")
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    (folder / "link.py").symlink_to(folder / "a.py")
    toml(folder, line)

    with pytest.raises(UsageError, match=what) as caught:
        read_settings(folder)
    assert caught.value.todo
    found = collect(folder)
    assert taken(found)["chat"] == "a.py"
    assert [each.source for each in found.problems if each.kind == "settings"] == ["lab3.toml"]


def test_what_lab3_toml_says_is_read_even_if_it_is_hidden_or_twice_the_same(folder: Path):
    put(folder, _dot_mine__a_dot_py=TOOLS, b_dot_py=TOOLS)
    toml(folder, 'chat = ".mine/a.py"', 'tools = "b.py"')

    found = collect(folder)

    assert (taken(found)["chat"], taken(found)["tools"]) == (".mine/a.py", "b.py")
    assert set(found.endpoints) == {"chat", "tools"}
    assert ["a.py is said to ask for a chat completion without tools" in p.what for p in found.problems].count(
        True
    ) == 1


def test_a_near_miss_of_a_key_is_corrected(folder: Path):
    toml(folder, 'chatt = "a.py"')

    with pytest.raises(UsageError) as caught:
        read_settings(folder)
    assert caught.value.todo == "write chat"


def test_a_model_in_lab3_toml_may_be_the_graders(folder: Path, tmp_path: Path):
    model = put_model(tmp_path / "models" / "m")
    toml(folder, f'model = "{model}"')

    assert read_settings(folder, model_roots=[tmp_path / "models"]) == Settings(model=model)
    assert collect(folder, model_roots=[tmp_path / "models"]).pick("model") == model
