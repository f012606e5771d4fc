"""A submitted folder: what is found in it, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab3.checks import judge
from lab3.errors import UsageError
from lab3.hub import Hub
from lab3.hub_wire import member_of
from lab3.submission import Submission
from tests.unit.test_models import CONFIG

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "homework").mkdir()
    return tmp_path / "homework"


@pytest.fixture
def submission(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with member_of(Hub()) as member:
        yield Submission(member, str(folder))


def add_model(folder: Path, quantization: dict | None = AWQ) -> Path:
    folder.mkdir(parents=True)
    config = CONFIG if quantization is None else CONFIG | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text("{}")
    return folder


def test_the_quantized_model_is_found_wherever_it_lies(folder: Path, submission: Submission):
    add_model(folder / "base", None)
    model = add_model(folder / "out" / "w4a16")
    assert submission.w4a16() == model


@pytest.mark.parametrize("count", [0, 2])
def test_no_model_or_two_are_the_submissions_fault(folder: Path, submission: Submission, count: int):
    for number in range(count):
        add_model(folder / f"model{number}")
    with pytest.raises(UsageError, match=f"{count or 'no'} quantized models in"):
        submission.w4a16()
    evidence = submission.evidence("quantization")
    assert evidence.trouble["quantization"].fault == "subject"
    assert {v.status for v in judge(evidence) if v.id.startswith("quantize.w")} == {"fail"}


def test_links_out_of_the_folder_are_not_followed(folder: Path, submission: Submission, tmp_path: Path):
    add_model(folder / "w4a16")
    other = add_model(tmp_path / "other-students")
    (folder / "link.json").symlink_to(other / "config.json")
    (folder / "linked").symlink_to(other)
    (folder / "passwd.py").symlink_to("/etc/passwd")
    assert submission.w4a16() == folder / "w4a16"
    assert submission.scripts() == ()


def test_a_folder_with_everything_in_it_is_refused(folder: Path, submission: Submission, monkeypatch):
    monkeypatch.setattr("lab3.submission.MOST_FILES", 5)
    for number in range(6):
        (folder / f"{number}.txt").write_text("")
    with pytest.raises(UsageError, match="more than 5 files"):
        submission.scripts()


CHAT = "from openai import OpenAI\nclient = OpenAI()\nclient.chat.completions.create(model='m', messages=[])\n"


@pytest.mark.parametrize(
    ("text", "role", "fault"),
    [
        (CHAT, "chat", ""),
        ("import openai\nopenai.OpenAI().chat.completions.create(messages=[], tools=[])", "tools", ""),
        (CHAT + "TOOLS = 'tools=[]'", "chat", ""),
        ("print('add and mul, 8 and 16')", "none", ""),
        ("from openai import OpenAI", "none", ""),
        ("def f(:\n", "none", "no Python: "),
        ("\0", "none", "no Python: "),
        ("(" * 5000, "none", "no Python: "),
    ],
)
def test_a_script_is_read_and_never_run(folder: Path, submission: Submission, text: str, role: str, fault: str):
    ran = folder.parent / "ran"
    code = text if fault else f"{text}\nopen({str(ran)!r}, 'w')\n"
    (folder / "答案 1.py").write_text(code)
    (found,) = submission.scripts()
    assert (found.path, found.role) == ("答案 1.py", role)
    assert found.fault.startswith(fault)
    assert bool(found.fault) == bool(fault)
    assert not ran.exists()


def test_sizes_without_the_source_are_held_against_the_models_shape(folder: Path, submission: Submission):
    import torch
    from safetensors.torch import save_file

    model = add_model(folder / "w4a16")
    save_file({"model.norm.weight": torch.zeros(64, dtype=torch.float16)}, model / "model.safetensors")
    facts = submission.evidence("quantization").quantization
    assert facts is not None
    parameters = 2 * (2 * 64 * 64 * 2 + 3 * 64 * 128) + 2 * 100 * 64 + 5 * 64
    assert facts.weight_bytes_before == 2 * parameters
    assert facts.weight_bytes_after == 128
    verdicts = {v.id: v.status for v in judge(submission.evidence("quantization"))}
    assert verdicts["quantize.w4a16"] == "pass"
    assert verdicts["quantize.size"] == "fail"


def test_how_it_was_served_is_not_shown_by_a_folder(submission: Submission):
    evidence = submission.evidence("quantized", "baseline")
    assert {trouble.fault for trouble in evidence.trouble.values()} == {"not_shown"}
    assert "fail" not in {v.status for v in judge(evidence)}
