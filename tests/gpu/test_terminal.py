"""The lab's first step, "verify that it starts": `lmdeploy chat` in a terminal, as a student types it."""

from __future__ import annotations

import sys

import pexpect
import pytest

from lab3 import vram
from lab3.vram_predict import predict
from tests.gpu.conftest import Lab

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

PROMPT = "double enter to end input >>> "
FLAGS = ["--backend", "turbomind", "--model-format", "awq", "--quant-policy", "4", "--cache-max-entry-count", "0.4"]


def test_the_quantized_model_talks_in_a_terminal_and_takes_its_memory(lab: Lab):
    before = vram.read(device="cuda")
    command = ["-m", "lmdeploy", "chat", str(lab.w4a16), *FLAGS]
    terminal = pexpect.spawn(sys.executable, command, encoding="utf-8", codec_errors="replace", timeout=180, echo=False)
    try:
        terminal.expect_exact(PROMPT)
        used = vram.read(terminal.pid, device="cuda")
        terminal.send("Who are you?\n\n")
        terminal.expect(r"\S")  # it has begun to answer; random weights would go on for 4096 tokens
        terminal.sendintr()
        terminal.expect_exact(PROMPT)
        terminal.send("exit\n\n")
        terminal.expect(pexpect.EOF)
        terminal.wait()
    finally:
        terminal.close(force=True)
    assert terminal.exitstatus == 0
    told = predict(
        total_mib=before.total_mib,
        foreign_mib=before.used_mib,
        model=lab.w4a16,
        ratio=0.4,
        kv_bits=4,
        engine="turbomind",
    )
    assert used.used_mib == pytest.approx(told.used.point, rel=0.015)
    vram.wait_freed(before, timeout_s=10)
