"""What is not simply run of the commands in README and docs, and why: the only exceptions, each with its reason.

A command that is in no table is run as it stands, in its page's order, and must end with 0. An entry that no page
has any more fails `tests/docs/test_blocks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Elsewhere:
    """Run by something else: `where` is a file, `says` the text by which that file does it."""

    where: str
    says: str
    reason: str


_TOX = "a tox environment within a tox environment would fetch all of LMDeploy's stack once more"
_GPU = "needs a GPU and installs another LMDeploy; the pipelines that have the same lines are run with stand-ins"

ELSEWHERE = {
    "python3 -m pip install tox tox-uv && python3 -m tox run -e lab": Elsewhere(
        "tox.ini", "commands = lab3 run --out {posargs:lab3-out}", f"{_TOX}; `lab3 run` itself is in SLOW"
    ),
    "python3 -m pip install tox tox-uv && python3 -m tox run -e test": Elsewhere(
        ".ci/run", "python3 -m pip install tox tox-uv && python3 -m tox run -e test", "CI runs this line"
    ),
    "pytest tests/lab -n 2": Elsewhere(
        "tox.ini", "commands = pytest -n 3 ", "`tox -e test`, which runs this test, too"
    ),
    "python -m pip install tox tox-uv": Elsewhere("tests/unit/test_ci_docs.py", "def test_every_pytest_option", _GPU),
    "python -m tox run -e gpu -- --lab3-out=lab3-suite --junitxml=lab3-suite/junit.xml --html=lab3-suite/report.html"
    " --self-contained-html": Elsewhere("tests/unit/test_ci_docs.py", "def test_every_pytest_option", _GPU),
    'echo "lmdeploy==0.17.0" > lmdeploy.override': Elsewhere("tests/unit/test_ci_docs.py", "UV_OVERRIDE", _GPU),
    "UV_OVERRIDE=lmdeploy.override python -m tox run -r -e gpu": Elsewhere(
        "tests/unit/test_ci_docs.py", "UV_OVERRIDE", _GPU
    ),
    "python -m tox run -e test -- tests/lab --base-url http://127.0.0.1:23333": Elsewhere(
        "tests/docs/tables.py", '"pytest tests/lab --base-url http://127.0.0.1:23333"', f"{_TOX}; its pytest is in SLOW"
    ),
}

# Run by `tox -e docs` alone: minutes on two cores. Elsewhere what they make lies there already (`Session.lay_out`).
SLOW = {
    "lab3 quantize embedded --out model-w4a16": "quantizes: 60 s",
    "lab3 run": "the whole lab: 150 s",
    "lab3 web internlm2_5-1_8b-chat-w4a16-4bit --kv-bits 4": "a server of its own: 20 s; tests/web has one, too",
    "lab3 web my-model-w4a16 --kv-bits 4 --compare my-model --cache-ratio 0.4": "two servers at once",
    "lab3 grade submissions/* --out results --checks chat,tools,scripts": "another server, for what README's does",
    "lab3 grade DIR --out my-results": "the same",
    "pytest tests/lab --base-url http://127.0.0.1:23333": "the protocol and 20 samples of each random check",
    'pytest tests/lab --base-url http://127.0.0.1:23333 --api-key "$KEY" --lab3-capabilities all --lab3-samples 50': (
        "50 samples"
    ),
    "pytest tests/lab --submission DIR --lab3-model MODEL": "the same, and the sandbox",
}

# Pages whose Python is run by `tox -e docs` alone.
SLOW_PYTHON = {"docs/python.md": "a server of its own, 35 s, for what README's Python does"}

# Commands that stay until they are interrupted, by their beginning: the option that gives them a free port.
STAYING = {
    "lab3 serve ": "--port",
    "lab3 web ": "--port",
    "LAB3_WEB_LOGIN=lab:correct-horse lab3 web ": "--port",
    "lab3 grade-reports --review ": "--port",
    "LAB3_CPU_MEMORY=3GiB python -m lab3.cpu lmdeploy serve api_server ": "--server-port",
}

# Programs that stand in for those that need another machine: name → what it does.
STAND_INS = {
    "ssh": 'case "$*" in "-L 7860:127.0.0.1:7860 gpu-box") ;; *) exit 255 ;; esac',
}

# What a command ends with, where that is not 0.
EXIT_CODES = {
    # 1: a check failed. The second report, tests/reports/corpus/46-negations, shows little of the lab.
    "lab3 grade-reports reports/* --out report-results": 1,
    "lab3 grade-reports reports/* --out report-results --tutorial tutorial.md": 1,
    # And LMDeploy 0.18 has not all of the capabilities, as the page says.
    'pytest tests/lab --base-url http://127.0.0.1:23333 --api-key "$KEY" --lab3-capabilities all --lab3-samples 50': 1,
}

# Pages whose commands are those of another, in another language.
TWINS = {
    "README.zh.md": "README.md",
    "docs/zh/student.md": "docs/start/student.md",
    "docs/zh/lab.md": "docs/lab.md",
}
