"""`lab3 run` on an InternLM2.5 folder on an NVIDIA GPU: what it measures is right; what random weights cannot, fails.

What the embedded model does there, chat and calls of its own choice, `tests/lab` judges.
"""

from __future__ import annotations

import pytest

from lab3.vram_predict import predict
from tests.gpu.conftest import Lab

pytestmark = pytest.mark.gpu

CLAIMS = (
    *("quantize.w4a16", "quantize.structure", "quantize.size", "quantize.folder"),
    *("serve.kv_int4", "serve.cache_ratio", "serve.memory", "chat.answer"),
)


def test_size_structure_memory_and_capacity_are_as_the_lab_claims(lab: Lab):
    assert {name: lab.statuses[name] for name in CLAIMS} == dict.fromkeys(CLAIMS, "pass"), lab.progress[-3000:]


def test_random_weights_call_nothing_which_is_a_fail(lab: Lab):
    assert lab.statuses["tools.add"] == lab.statuses["tools.mul"] == "fail"
    assert lab.returncode == 1


def test_no_code_of_the_checkpoint_was_run(lab: Lab, internlm2):
    assert not (internlm2 / "ran").exists()


def test_the_folder_is_at_least_55_percent_smaller_and_within_a_percent_of_the_prediction(lab: Lab):
    q = lab.report["evidence"]["quantization"]
    assert q["group_size"] == 128
    assert q["weight_bytes_after"] < 0.45 * q["weight_bytes_before"]
    assert q["folder_bytes_after"] < 0.45 * q["folder_bytes_before"]
    assert q["weight_bytes_after"] == pytest.approx(q["predicted_weight_bytes"], rel=0.01)


@pytest.mark.parametrize("section", ["baseline", "quantized"])
def test_its_servers_held_what_was_predicted(lab: Lab, section: str):
    served = lab.report["evidence"][section]
    told = predict(
        total_mib=served["total_mib"],
        model=lab.source if section == "baseline" else lab.w4a16,
        foreign_mib=served["foreign_mib"],
        ratio=served["cache_ratio"],
        kv_bits=served["kv_bits"],
        engine=served["engine"],
    )
    assert served["engine"] == "turbomind"
    assert told.used.point is not None
    assert served["used_mib"] == pytest.approx(told.used.point, rel=0.015)
    assert served["kv_tokens"] == pytest.approx(told.kv_tokens.high, rel=0.02)
