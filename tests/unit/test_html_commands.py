"""What to type to do a run again can be typed in its order."""

import shlex
from dataclasses import replace

from lab3.report.html_commands import commands
from tests.unit.test_checks import GOOD

SERVES = "python -m lab3.cpu lmdeploy serve api_server 'out/my model-w4a16' --server-port 37499 --quant-policy 4"


def test_questions_go_to_the_server_that_the_command_before_starts_with_what_the_one_before_makes():
    evidence = replace(GOOD, quantized=replace(GOOD.quantized, command=SERVES))
    typed = {each.name: shlex.split(each.text) for each in commands(evidence)}
    assert typed["quantize_step"][-3:] == ["--out", "out/my model-w4a16", "--overwrite"]
    for name in ("conversation", "calls"):
        assert typed[name][typed[name].index("--base-url") + 1] == "http://127.0.0.1:37499/v1"


def test_a_command_that_is_no_shells_is_passed_over():
    evidence = replace(GOOD, quantized=replace(GOOD.quantized, command="lmdeploy 'serve"))
    typed = {each.name: each.text for each in commands(evidence)}
    assert "--out model-w4a16" in typed["quantize_step"]
    assert "http://127.0.0.1:23333/v1" in typed["conversation"]
