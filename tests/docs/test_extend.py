"""What docs/extend.md promises to who adds a check: it is tested by the suite, and the tests ask for its mutant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, python_blocks


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy, in which the page's check is added to the rubric as the page says."""
    for name in ("lab3", "tests/lab", "tests/unit/test_checks.py", "tests/where.py", "conftest.py", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    check = next(block.text for block in python_blocks("docs/extend.md") if "QUICK = Check(" in block.text)
    rubric = tmp_path / "lab3/checks.py"
    added = check.replace("from lab3.evidence import Evidence\nfrom lab3.verdicts import Check, Finding\n", "")
    text = rubric.read_text(encoding="utf-8")
    begin = "# fmt: off\nCHECKS: tuple[Check, ...] = (\n"
    assert begin in text
    rubric.write_text(text.replace(begin, f"{added}\n\n{begin}    QUICK,\n"), encoding="utf-8")
    return tmp_path


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=120)


def test_an_added_check_has_a_test_in_the_suite(repository: Path):
    done = pytest_in(repository, "tests/lab", "--collect-only")
    assert "test_lab[chat.first_token]" in done.stdout, done.stdout + done.stderr


def test_a_check_without_a_mutant_fails_the_tests(repository: Path):
    done = pytest_in(repository, "tests/unit/test_checks.py", "-k", "every_check_has_a_mutant")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "chat.first_token" in done.stdout


def test_without_it_both_are_as_they_were():
    assert "chat.first_token" not in (ROOT / "lab3/checks.py").read_text(encoding="utf-8")
