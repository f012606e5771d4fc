"""A submitted folder: what is found in it, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab3.checks import judge
from lab3.grading.subject import Submission
from lab3.hub import Hub
from lab3.hub_wire import member_of
from lab3.subject import NotShown
from tests.unit.test_models import CONFIG

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "homework").mkdir()
    return tmp_path / "homework"


@pytest.fixture
def submission(folder: Path):
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


def test_no_model_is_nothing_to_judge_and_the_grader_s_is_served_in_its_place(submission: Submission, tmp_path: Path):
    with pytest.raises(NotShown, match="no quantized model was handed in"):
        submission.w4a16()
    evidence = submission.evidence("quantization", "structure")
    assert {trouble.fault for trouble in evidence.trouble.values()} == {"not_shown"}
    submission.fallback = lambda: tmp_path / "the graders"
    assert submission.w4a16() == tmp_path / "the graders"
    with pytest.raises(NotShown):
        submission.handed_in()


def test_of_two_models_the_one_that_the_command_serves_is_taken(folder: Path, submission: Submission):
    for name in ("a", "b"):
        add_model(folder / name)
    (folder / "run.sh").write_text("lmdeploy serve api_server ./b --quant-policy 4 --cache-max-entry-count 0.3\n")
    assert submission.w4a16() == folder / "b"
    spec = submission.spec()
    assert (spec.model, spec.kv_bits, spec.cache_ratio) == (str(folder / "b"), 4, 0.3)


def test_of_two_models_that_nobody_names_one_is_taken_and_it_is_told(folder: Path, submission: Submission):
    for name in ("a", "b"):
        add_model(folder / name)
    assert submission.w4a16() == folder / "a"
    assert "ambiguous" in {problem.kind for problem in submission.collected.problems}


@pytest.mark.parametrize("flags", ["--quant-polcy 4", "--quant-policy 4 server-port 23333", "--adapters x=y"])
def test_a_command_that_does_not_work_is_a_fault_and_the_scripts_get_the_lab_s_server(
    folder: Path, submission: Submission, flags: str
):
    model = add_model(folder / "w4a16")
    (folder / "run.sh").write_text(f"lmdeploy serve api_server w4a16 {flags}\n")
    evidence = submission.evidence("quantized")
    assert evidence.trouble["quantized"].fault == "subject"
    assert "the serve command does not work" in evidence.trouble["quantized"].text
    assert {v.status for v in judge(evidence) if v.id == "serve.kv_int4"} == {"fail"}
    assert submission.spec().model == str(model)


def test_links_out_of_the_folder_are_not_followed(folder: Path, submission: Submission, tmp_path: Path):
    add_model(folder / "w4a16")
    other = add_model(tmp_path / "other-students")
    (folder / "link.json").symlink_to(other / "config.json")
    (folder / "linked").symlink_to(other)
    (folder / "passwd.py").symlink_to("/etc/passwd")
    assert submission.w4a16() == folder / "w4a16"
    assert not [each for each in submission.collected.found if each.role in ("chat", "tools")]
    assert submission.evidence("scripts").trouble["scripts"].fault == "not_shown"


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
