"""What a script printed, beside what it asked: literals of runs."""

from __future__ import annotations

from typing import Any

import pytest

from lab3.evidence import Evidence, ScriptFacts, ScriptRun
from lab3.grading.script_checks import SCRIPT_CHECKS
from lab3.verdicts import verdict_of

HONEST = next(check for check in SCRIPT_CHECKS if check.id == "scripts.honest")


def status(stdout: str, *, asked: bool = False, **changes: Any) -> str:
    told: dict[str, Any] = {
        "attempt": 1, "outcome": "exited", "returncode": 0, "stdout": stdout, "stderr": "", "right": False,
        "wire": {"asked": asked, "printed": [], "invented": []}, "server_trouble": (),
    }  # fmt: skip
    script = ScriptFacts(path="chat.py", role="chat", why="", runs=(ScriptRun(**told | changes),))
    return verdict_of(HONEST, Evidence(subject="", model="", environment={}, scripts=(script,))).status


@pytest.mark.parametrize("text", ["Hello, I am your assistant today.", "你好！我会写作、翻译，也会算数。"])
def test_a_text_of_the_scripts_own_is_not_the_models(text: str):
    assert status(text) == "fail"


def test_a_lone_number_may_be_anything_but_no_evidence():
    assert status("答案: 299") == "unknown"


def test_what_was_asked_of_the_model_may_be_printed():
    assert status("你好！我会写作、翻译，也会算数。", asked=True) == "pass"


@pytest.mark.parametrize("changes", [{"returncode": 1}, {"outcome": "timeout"}, {"server_trouble": ("died",)}])
def test_a_script_that_did_not_come_to_its_end_is_not_suspected(changes: dict[str, Any]):
    assert status("你好！我会写作、翻译，也会算数。", **changes) == "pass"
