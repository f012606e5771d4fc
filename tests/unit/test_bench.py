"""The programs in bench/: each imports and tells its options; what they make of their figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.server_start import spread

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(file.stem for file in (ROOT / "bench").glob("*.py") if "__main__" in file.read_text("utf-8"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_imports_and_tells_its_options(name: str):
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_an_interval_of_a_median_is_as_sure_as_so_few_values_allow():
    told = spread([5.0, 1.0, 2.0, 4.0, 3.0, 9.0, 7.0, 8.0, 6.0])
    assert (told["median"], told["min"], told["max"]) == (5, 1, 9)
    assert (told["low"], told["high"], told["sure"]) == (2, 8, 0.961)  # 1 - 2 * (1 + 9) / 2**9
    few = spread([3.0, 1.0, 2.0])
    assert (few["low"], few["high"], few["sure"]) == (1, 3, 0.75)
