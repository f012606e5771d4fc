"""`lab3 run` on an NVIDIA GPU. It leases one by itself, so nothing here holds any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu


def test_lab3_run_does_the_whole_lab_on_the_card(tmp_path: Path, embedded_model: Path):
    command = [sys.executable, "-m", "lab3", "run", "--model", str(embedded_model), "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert {v["status"] for v in report["verdicts"] if v["required"]} == {"pass"}
    assert report["evidence"]["quantized"]["engine"] == "pytorch"
