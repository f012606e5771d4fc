"""Size, VRAM and capacity of servers of the 1.8B shape: predictions are met by measurements, from both sides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from lab3 import vram
from lab3.capacity import kv_tokens
from lab3.chat import chat
from lab3.serve import ApiServer
from lab3.vram_predict import Prediction, predict
from tests.gpu.conftest import Lab

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

USED, TOKENS = 0.015, 0.02  # how far from the prediction
LEFT_MIB = 64  # more than before, after a server has gone
FOREIGN_MIB = 10_240


@dataclass(frozen=True)
class Case:
    """A server: the shape's weights, the bits of its KV cache, its cache ratio and its engine."""

    weights: str
    kv_bits: int
    ratio: float
    engine: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.weights}-kv{self.kv_bits}-{self.ratio:g}"


@dataclass(frozen=True)
class Measured:
    """What a server held once it had answered, what it says that its cache holds, and the card before and after."""

    used_mib: int
    total_mib: int
    tokens: int | None
    before_mib: int
    after_mib: int
    predicted: Prediction


LAB_BITS = [Case("w4a16", bits, 0.4, engine) for engine in ("turbomind", "pytorch") for bits in (16, 8, 4)]
OTHERS = [Case("bf16", 16, 0.8, "pytorch"), Case("bf16", 8, 0.4, "turbomind")]  # bf16 at 0.8 on TurboMind: `lab3 run`


def measure(folder: Path, case: Case) -> Measured:
    before = vram.read(device="cuda")
    with ApiServer(folder, kv_bits=case.kv_bits, cache_ratio=case.ratio, engine=case.engine) as server:
        with vram.Meter(server.pid, device="cuda") as meter:
            reply = chat("What is the capital of Germany?", base_url=server.base_url, max_tokens=16, temperature=0.0)
        assert server.engine == case.engine
        assert reply.usage.completion_tokens > 0
        tokens = kv_tokens(server.base_url, server.log_path)
    told = predict(
        total_mib=before.total_mib,
        foreign_mib=before.used_mib,
        model=folder,
        ratio=case.ratio,
        kv_bits=case.kv_bits,
        engine=case.engine,
    )
    after = vram.read(device="cuda")
    return Measured(meter.peak.used_mib, before.total_mib, tokens, before.used_mib, after.used_mib, told)


@pytest.fixture(scope="module")
def measured(lab: Lab) -> Callable[[Case], Measured]:
    """Each server is started and measured once, whoever asks."""
    known: dict[Case, Measured] = {}

    def get(case: Case) -> Measured:
        if case not in known:
            known[case] = measure(lab.w4a16 if case.weights == "w4a16" else lab.source, case)
        return known[case]

    return get


@pytest.mark.parametrize("case", [*LAB_BITS, *OTHERS], ids=str)
def test_a_server_holds_the_memory_and_the_tokens_that_were_predicted_and_gives_all_back(
    case: Case, measured: Callable[[Case], Measured]
):
    found = measured(case)
    assert found.predicted.used.point is not None, found.predicted.notes
    assert found.used_mib == pytest.approx(found.predicted.used.point, rel=USED)
    assert found.tokens == pytest.approx(found.predicted.kv_tokens.high, rel=TOKENS)
    assert found.after_mib <= found.before_mib + LEFT_MIB


@pytest.mark.parametrize("engine", ["turbomind", "pytorch"])
def test_int4_holds_3_76_and_int8_1_94_times_the_tokens_of_fp16(engine: str, measured: Callable[[Case], Measured]):
    tokens = {case.kv_bits: measured(case).tokens for case in LAB_BITS if case.engine == engine}
    assert tokens[4] / tokens[16] == pytest.approx(3.76, rel=TOKENS)
    assert tokens[8] / tokens[16] == pytest.approx(1.94, rel=TOKENS)


@pytest.mark.parametrize("engine", ["turbomind", "pytorch"])
def test_a_kv_cache_of_fewer_bits_leaves_the_memory_where_it_was(engine: str, measured: Callable[[Case], Measured]):
    used = [measured(case).used_mib for case in LAB_BITS if case.engine == engine]
    assert all(a == pytest.approx(b, rel=USED) for a, b in combinations(used, 2)), used


@pytest.fixture
def stranger() -> Iterator[int]:
    """Another process that holds 10 GiB of the card: its pid."""
    code = f"import torch; x = torch.zeros({FOREIGN_MIB} << 20, dtype=torch.uint8, device='cuda'); print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        yield process.pid
        process.kill()


def test_what_a_stranger_holds_is_noticed_and_accounted_for(stranger: int, lab: Lab):
    case = Case("w4a16", 4, 0.4, "turbomind")
    found = measure(lab.w4a16, case)
    assert found.before_mib > FOREIGN_MIB
    assert found.predicted.foreign_mib == found.before_mib
    assert found.used_mib == pytest.approx(found.predicted.used.point, rel=USED)
    alone = predict(total_mib=found.total_mib, model=lab.w4a16, ratio=0.4, kv_bits=4, engine="turbomind")
    assert abs(found.used_mib - alone.used.point) > 2 * USED * alone.used.point, "it would have been a false alarm"
    assert found.tokens == pytest.approx(found.predicted.kv_tokens.high, rel=TOKENS)
