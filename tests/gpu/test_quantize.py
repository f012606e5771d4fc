"""Quantization on the card: the weights are those that LMDeploy's own command writes, with room and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.quantize_gpu import same_weights
from lab3.quantize import QuantizeResult, quantize
from tests.gpu.conftest import Lab

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("own_gpu")]

SAMPLES, SEQLEN = 8, 2048
FREE_MIB = 4096  # the 1.8B's weights take 3,603 MiB, and more is needed beside them


@pytest.fixture(scope="module")
def lmdeploys(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lmdeploy lite auto_awq` makes of the 1.8B with the tutorial's flags, of fewer samples."""
    out = tmp_path_factory.mktemp("lmdeploy") / "w4a16"
    command = [sys.executable, "-m", "bench.quantize_gpu", "--child", str(lab.source), str(out), str(SAMPLES)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture
def crowded(lab: Lab) -> Iterator[None]:
    """Another process holds the card but for `FREE_MIB`."""
    code = (
        "import torch; free, _ = torch.cuda.mem_get_info();"
        f"x = torch.empty(free - ({FREE_MIB} << 20), dtype=torch.uint8, device='cuda'); print(1); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "1\n"
        yield
        process.kill()


def made(lab: Lab, out: Path) -> QuantizeResult:
    return quantize(lab.source, out, samples=SAMPLES, seqlen=SEQLEN, device="cuda")


def test_the_weights_are_those_of_lmdeploys_command(lab: Lab, lmdeploys: Path, tmp_path: Path):
    result = made(lab, tmp_path / "w4a16")
    assert (result.device, result.group_size) == ("cuda", 128)
    assert result.perplexity_before is not None
    assert result.perplexity_after is not None
    check(same_weights(result.out, lmdeploys))


def test_a_model_that_does_not_fit_is_quantized_layer_by_layer(
    lab: Lab, lmdeploys: Path, crowded: None, tmp_path: Path
):
    result = made(lab, tmp_path / "w4a16")
    assert any("does not fit on the GPU" in notice for notice in result.notices), result.notices
    assert result.perplexity_before is None
    check(same_weights(result.out, lmdeploys))


def check(found: dict[str, float]) -> None:
    """fp16 products are summed in another order for other batches: the largest input differs in its last bit."""
    assert found["values"] > 0.995, found
    assert found["scales_apart_at_most"] < 0.01, found
