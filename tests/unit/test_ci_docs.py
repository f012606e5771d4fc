"""The CI pipelines in docs/ci name what exists, and do what docs/ci.md says; their scripts are run, with stand-ins."""

from __future__ import annotations

import configparser
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from lab3.checks import CHECKS
from lab3.evidence import Evidence
from lab3.report import build_report
from lab3.report.metrics import Metric
from lab3.verdicts import verdict_of

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/ci.md"
PIPELINES = [ROOT / "docs/ci/github-gpu.yml", ROOT / "docs/ci/gitlab-ci.yml"]
DOCUMENTS = [GUIDE, *PIPELINES]
by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

# --- what the documents say ------------------------------------------------------------------------------------------


@functools.cache
def github() -> dict[Any, Any]:
    return yaml.safe_load(PIPELINES[0].read_text(encoding="utf-8"))


@functools.cache
def gitlab() -> dict[str, Any]:
    return yaml.safe_load(PIPELINES[1].read_text(encoding="utf-8"))


def github_step(name: str) -> dict[str, Any]:
    steps = github()["jobs"]["gpu"]["steps"]
    return next(step for step in steps if name in (step.get("name"), step.get("uses", "").partition("@")[0]))


def gitlab_script() -> str:
    return "\n".join(gitlab()[".gpu"]["script"])


def scripts(path: Path) -> str:
    """The shell of a pipeline, or of the guide's console blocks."""
    if path == PIPELINES[0]:
        return "\n".join(step["run"] for step in github()["jobs"]["gpu"]["steps"] if "run" in step)
    if path == PIPELINES[1]:
        return gitlab_script()
    blocks = re.findall(r"^```console\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)
    return re.sub(r"^\$ ", "", "".join(blocks), flags=re.M)


def command_lines(path: Path) -> list[list[str]]:
    """The words of each line that calls tox or pytest."""
    lines = scripts(path).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines if re.search(r"\b(tox run|pytest) ", line)]
    return [words for words in split if "tox" in words or "pytest" in words]


def pytest_options(words: list[str]) -> set[str]:
    """The long options that such a line gives to pytest: for tox, those after `--`."""
    given = words[words.index("--") + 1 :] if "--" in words else [] if "tox" in words else words
    return {word.partition("=")[0] for word in given if word.startswith("--")}


def versions(pipeline: Path) -> list[str]:
    if pipeline == PIPELINES[1]:
        return gitlab()["gpu"]["parallel"]["matrix"][0]["LMDEPLOY"]
    expression = github()["jobs"]["gpu"]["strategy"]["matrix"]["lmdeploy"]
    return next(json.loads(text) for text in re.findall(r"'(\[.*?\])'", expression) if "{0}" not in text)


# --- they name what exists -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offered() -> set[str]:
    """What pytest's help offers in this repository, with its plug-ins and lab3's."""
    command = [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    return {_spelled(option) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", told)}


def _spelled(option: str) -> str:
    """pytest takes --junitxml and --junit-xml, and its help shows the longer one."""
    return option.replace("-", "")


@by_name
def test_every_pytest_option_exists(path: Path, offered: set[str]):
    named = set().union(*map(pytest_options, command_lines(path)))
    assert {"--junitxml", "--html", "--self-contained-html", "--lab3-out"} <= named
    assert not {option for option in named if _spelled(option) not in offered}


def test_options_in_the_guides_sentences_exist(offered: set[str]):
    named = set(re.findall(r"`(--(?:lab3|base|api|submission|timeout)[\w-]*)", GUIDE.read_text(encoding="utf-8")))
    assert "--lab3-capabilities" in named
    assert not {option for option in named if _spelled(option) not in offered}


@by_name
def test_every_tox_environment_exists(path: Path):
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    named = set(re.findall(r"\btox (?:run )?(?:-r )?-e (\w+)", path.read_text(encoding="utf-8")))
    assert "gpu" in named
    assert named <= {section.partition(":")[2] for section in tox.sections()}


def test_tox_passes_on_what_the_guide_tells_to_set():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    passed = tox["testenv"]["pass_env"].split()
    for variable in ("UV_OVERRIDE", "LAB3_CACHE", "HF_HOME", "CUDA_VISIBLE_DEVICES", "LMDEPLOY_USE_MODELSCOPE"):
        assert variable in GUIDE.read_text(encoding="utf-8")
        assert any(Path(variable).match(pattern) for pattern in passed), variable


def test_every_link_and_path_of_the_guide_exists():
    text = GUIDE.read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert links
    assert not [link for link in links if not (GUIDE.parent / link).exists()]
    folders = "|".join(re.escape(each.name) for each in ROOT.iterdir() if each.is_dir() and each.name[0] != ".")
    paths = {path for path in re.findall(rf"\b(?:{folders})/[\w./-]*\w", text) if "lab3-" not in path}
    assert {"tests/gpu", "tests/lab"} <= paths
    assert not [path for path in paths if not (ROOT / path).exists() and not (GUIDE.parent / path).exists()]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_a_pipeline_refers_to_the_guide_that_is_there(path: Path):
    named = set(re.findall(r"\bdocs/[\w./-]*\w", path.read_text(encoding="utf-8")))
    assert "docs/ci.md" in named
    assert all((ROOT / each).is_file() for each in named)


@by_name
def test_no_host_is_named(path: Path):
    """Indexes, hubs and registries are the machine's settings."""
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\w+://([^/:\s`]+)", text)) <= {"127.0.0.1"}
    assert not re.search(r"\b(?!tox\.ini\b)[\w-]+\.(?:org|com|io|co|cn|dev|net)\b", text)


# --- they do what the guide says -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda path: path.name)
def test_the_matrix_has_the_pinned_version_and_the_newest(pipeline: Path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = map(Requirement, project["dependencies"])
    pin = next(each.specifier for each in required if each.name == "lmdeploy")
    assert all(str(part) in GUIDE.read_text(encoding="utf-8") for part in pin)
    wanted = versions(pipeline)
    assert "newest" in wanted
    assert [version for version in wanted if version != "newest" and version in pin]


def test_a_version_that_breaks_does_not_end_the_others():
    assert github()["jobs"]["gpu"]["strategy"]["fail-fast"] is False


def test_artifacts_are_kept_when_the_job_failed():
    upload = github_step("actions/upload-artifact")
    assert upload["if"] == "always()"
    assert upload["with"]["path"].split() == ["lab3-suite", "!lab3-suite/quantized"]
    kept = gitlab()[".gpu"]["artifacts"]
    assert kept["when"] == "always"
    assert kept["paths"] == ["lab3-suite/"]
    assert kept["reports"]["junit"].startswith("lab3-suite/")


def test_the_summary_is_written_when_the_job_failed():
    assert github_step("Summary")["if"] == "always()"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_everything_is_written_into_the_folder_that_is_kept(path: Path):
    judging = next(words for words in command_lines(path) if "--" in words)
    written = [word.partition("=") for word in judging if word.startswith(("--junitxml=", "--html=", "--lab3-out="))]
    assert len(written) == 3
    assert {Path(value).parts[0] for _, _, value in written} == {"lab3-suite"}


def test_strangers_code_does_not_run():
    triggers = github()[True]  # YAML 1.1 reads `on` as true
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert github()["permissions"] == {"contents": "read"}
    assert github_step("actions/checkout")["with"]["persist-credentials"] is False
    for job in ("gpu", "gpu-one-version"):
        sources = {source for rule in gitlab()[job]["rules"] for source in re.findall(r'== "(\w+)"', rule["if"])}
        assert sources == {"schedule", "web"}


def test_nothing_that_was_typed_is_pasted_into_a_script():
    assert not [step for step in github()["jobs"]["gpu"]["steps"] if "${{" in step.get("run", "")]


def test_both_run_on_a_gpu_runner_and_end_in_time():
    job = github()["jobs"]["gpu"]
    assert job["runs-on"] == ["self-hosted", "gpu"]
    assert job["timeout-minutes"] > sum(step.get("timeout-minutes", 0) for step in job["steps"])
    assert gitlab()[".gpu"]["tags"] == ["gpu"]
    assert gitlab()[".gpu"]["timeout"]


# --- the scripts, run with stand-ins for the programs that they call -------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path):
    """Run a script where `python` and the rest are stand-ins that exit as told: (exit code, output)."""

    def program(name: str, body: str) -> None:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    def run(script: str, *, install: int = 0, judge: int = 0, gpu: int = 0, **variables: str) -> tuple[int, str]:
        program("nvidia-smi", f"exit {gpu}")
        program("python3.11", 'mkdir -p "$3/bin" && : > "$3/bin/activate"')
        program(
            "python",
            f'case "$*" in *--notest*) exit {install};; *"-m tox"*) echo "judged with $UV_OVERRIDE"; exit {judge};; '
            "*'uv pip compile'*) cat > seen; echo lmdeploy==9.8.7;; esac",
        )
        environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "GITHUB_ENV": str(tmp_path / "env"), **variables}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


TITLES = {
    1: "LMDeploy 0.18.0 fails the lab",
    3: "Infrastructure trouble and no verdict on LMDeploy 0.18.0",
    4: "lab3 was called wrongly",
    5: "lab3 was called wrongly",
}


@pytest.mark.parametrize(("code", "title"), TITLES.items())
def test_a_failed_job_keeps_pytests_code_and_says_whose_trouble_it_is(stage, code: int, title: str):
    assert "," not in title  # GitHub would end the title there
    ended, told = stage(github_step("Judge")["run"], judge=code, WANTED="0.18.0")
    assert ended == code
    assert f"::error title={title}::" in told
    ended, told = stage(gitlab_script(), judge=code, LMDEPLOY="0.18.0")
    assert ended == code
    assert title in told.splitlines()[-1]
    assert title.replace("0.18.0", "X") in GUIDE.read_text(encoding="utf-8")


def test_a_job_that_passed_says_nothing_of_the_kind(stage):
    ended, told = stage(github_step("Judge")["run"], WANTED="0.18.0")
    assert (ended, "::error" in told) == (0, False)
    ended, told = stage(gitlab_script(), LMDEPLOY="0.18.0")
    assert ended == 0
    assert told.splitlines()[-1] == "judged with lmdeploy.override"


def test_an_installation_that_failed_is_no_failed_check(stage):
    """tox exits 1 for it."""
    assert stage(gitlab_script(), install=1, LMDEPLOY="0.18.0")[0] == 3
    assert stage(gitlab_script(), gpu=9, LMDEPLOY="0.18.0")[0] == 3
    saying = github_step("Say that nothing was judged")
    assert "steps.judge.conclusion == 'skipped'" in saying["if"]
    assert f"::error title={TITLES[3]}::" in stage(saying["run"], WANTED="0.18.0")[1]
    names = [step.get("name") for step in github()["jobs"]["gpu"]["steps"]]
    assert names.index("See the GPU") < names.index("Install lab3 and LMDeploy") < names.index("Judge")
    assert gitlab()[".gpu"]["retry"]["exit_codes"] == 3


@pytest.mark.parametrize(("wanted", "line"), [("0.17.0", "lmdeploy==0.17.0"), ("newest", "lmdeploy==9.8.7")])
def test_the_wanted_version_overrides_the_pin(stage, tmp_path: Path, wanted: str, line: str):
    for script, variable in ((github_step("Choose LMDeploy")["run"], "WANTED"), (gitlab_script(), "LMDEPLOY")):
        (tmp_path / "lmdeploy.override").unlink(missing_ok=True)
        assert stage(script, **{variable: wanted})[0] == 0
        assert (tmp_path / "lmdeploy.override").read_text() == f"{line}\n"
        if wanted == "newest":
            assert (tmp_path / "seen").read_text() == "lmdeploy\n"
    assert (tmp_path / "env").read_text() == "UV_OVERRIDE=lmdeploy.override\n"


@pytest.mark.parametrize("wanted", ["latest", "", "0.18 @ file:///tmp/x", "0.18.0\nother==1", "0.18;x", "$(id)"])
def test_what_is_no_version_is_refused(stage, tmp_path: Path, wanted: str):
    for script, variable in ((github_step("Choose LMDeploy")["run"], "WANTED"), (gitlab_script(), "LMDEPLOY")):
        ended, told = stage(script, **{variable: wanted})
        assert ended != 0
        assert "not a version" in told
        assert not (tmp_path / "lmdeploy.override").exists()


def summary(folder: Path) -> str:
    environ = {**os.environ, "WANTED": "0.18.0", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    command = [sys.executable, "-c", github_step("Summary")["run"]]
    subprocess.run(command, cwd=folder, env=environ, check=True, timeout=60)
    return (folder / "summary.md").read_text(encoding="utf-8")


def test_the_summary_tells_the_verdicts_of_the_report(tmp_path: Path):
    evidence = Evidence(subject="reference", model="embedded", environment={"lmdeploy": "0.18.0"})
    report = build_report(evidence, [verdict_of(check, evidence) for check in CHECKS])
    report["verdicts"][0]["reason"] = "a | b\nc"
    report["metrics"] = [vars(Metric("quantization.weight_bytes_after", 1570551421, "bytes"))]
    (tmp_path / "lab3-suite").mkdir()
    (tmp_path / "lab3-suite/report.json").write_text(json.dumps(report), encoding="utf-8")
    told = summary(tmp_path)
    assert told.startswith(f"### LMDeploy 0.18.0: 0 of {report['max_score']} points\n")
    assert all(f"| {check.id} | unknown | " in told for check in CHECKS)
    assert "| a \\| b c |" in told
    assert "| quantization.weight_bytes_after | 1570551421 bytes |" in told


def test_the_summary_tells_that_nothing_was_judged(tmp_path: Path):
    assert summary(tmp_path) == "### LMDeploy 0.18.0: nothing was judged\n"
