"""The suite says where its time went."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_TESTS = """
import subprocess, sys, time
import pytest

BURN = "import time; end = time.process_time() + 1.0\\nwhile time.process_time() < end: pass"

@pytest.mark.xdist_group("programs")
def test_program():
    subprocess.run([sys.executable, "-c", BURN], check=True)

def test_sleep():
    time.sleep(0.5)
"""


def test_the_seconds_of_groups_and_of_programs_are_told(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(_TESTS)
    options = ["-p", "tests.where", "-n", "2", "--dist", "loadgroup", "--durations=1", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = done.stdout.split("where the time went")[1]
    groups = {name: float(seconds) for seconds, name in re.findall(r"([\d.]+) s  (\S+) \(\d tests\)", told)}
    assert groups.keys() == {"@programs", "test_some.py"}
    assert sum(groups.values()) >= 1.5
    pytest_s, started_s = map(float, re.findall(r"pytest ([\d.]+), what it started ([\d.]+)", told)[0])
    assert pytest_s > 0
    assert 1.0 <= started_s < 1.9, "the program's second is counted, and once"
