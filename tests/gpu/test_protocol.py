"""The OpenAI protocol on both engines, with InternLM2.5-1.8B's shape as W4A16 and random weights.

They say nothing of sense, so what needs a will of the model's own is not declared; what LMDeploy forces must hold.
"""

from __future__ import annotations

import pytest

from lab3.evidence import Evidence
from lab3.protocol import PROTOCOL_CHECKS
from lab3.protocol_facts import LMDEPLOY_CAPABILITIES
from lab3.protocol_probe import probe
from lab3.serve import ApiServer
from lab3.verdicts import verdict_of
from tests.gpu.conftest import Lab

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

# A call of its own choice, and a digit that is a token of its own for a stop word.
OF_SENSE = {"tools", "stop"}


@pytest.mark.parametrize("engine", ["turbomind", "pytorch"])
def test_what_the_protocol_promises_holds_and_a_required_call_fits_its_schema(lab: Lab, engine: str):
    with ApiServer(lab.w4a16, kv_bits=4, cache_ratio=0.4, engine=engine) as server:
        facts = probe(server.base_url, capabilities=LMDEPLOY_CAPABILITIES - OF_SENSE)
    evidence = Evidence(subject="reference", model=str(lab.w4a16), environment={}, protocol=facts)
    verdicts = {check.id: verdict_of(check, evidence) for check in PROTOCOL_CHECKS}
    assert server.engine == engine
    assert {name: verdict.reason for name, verdict in verdicts.items() if verdict.status == "fail"} == {}
    assert verdicts["protocol.tool_required"].status == "pass", verdicts["protocol.tool_required"].reason
