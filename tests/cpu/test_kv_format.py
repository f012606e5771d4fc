"""The KV cache on the CPU holds what LMDeploy's GPU kernels would have written: judged by those kernels themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lab3.cpu import kv_quant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kernel")]  # one run of the kernels is enough


@pytest.fixture(scope="module")
def kernel_output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """LMDeploy's `fill_kv_cache` and `tl.rand` run by Triton's interpreter, which has to be chosen before import."""
    out = tmp_path_factory.mktemp("kernel") / "out.pt"
    script = Path(__file__).with_name("triton_oracle.py")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script), str(out)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_cache_holds_the_bytes_that_lmdeploys_kernel_writes(kernel_output, bits: int, dtype: str):
    key = f"{dtype}_{bits}"
    states = kernel_output[f"{key}_states"]
    packed, scales_zeros = kv_quant.quantize(states, bits=bits, stored_dtype=states.dtype)
    assert torch.equal(packed, kernel_output[f"{key}_packed"])
    # Triton's interpreter truncates fp32 to bf16 where a GPU rounds: one unit in the last of 8 places.
    tolerance = 2**-7 if dtype == "bfloat16" else 0
    torch.testing.assert_close(scales_zeros, kernel_output[f"{key}_scales_zeros"], rtol=tolerance, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_round_trip_error_is_at_most_half_a_step(bits: int, head_dim: int):
    values = torch.randn(50, 3, head_dim, generator=torch.Generator().manual_seed(0)) * 7 + 3
    packed, scales_zeros = kv_quant.quantize(values, bits=bits, stored_dtype=torch.float32)
    error = (kv_quant.dequantize(packed, scales_zeros, bits=bits, dtype=torch.float32) - values).abs()
    step = (values.amax(-1) - values.amin(-1)) / (2**bits - 1)
    assert packed.shape[-1] == head_dim * bits // 8
    assert (error.amax(-1) <= step * 0.501).all()
    assert error.amax() > step.min() * 0.3, "an error of nothing would mean that nothing was quantized"


def test_a_constant_head_is_stored_exactly():
    values = torch.full((2, 1, 64), 0.75)
    packed, scales_zeros = kv_quant.quantize(values, bits=4, stored_dtype=torch.float32)
    assert torch.equal(kv_quant.dequantize(packed, scales_zeros, bits=4, dtype=torch.float32), values)


def test_a_seed_draws_the_same_number_as_on_a_gpu(kernel_output):
    from lab3.cpu.sampling import uniform

    drawn = uniform(kernel_output["seeds"], kernel_output["offsets"])
    assert torch.equal(drawn, kernel_output["uniform"])


def test_a_seed_draws_the_same_token_as_on_a_gpu(kernel_output):
    from lab3.cpu.sampling import CpuMultinomialSampling

    probabilities = kernel_output["probabilities"]
    tokens = CpuMultinomialSampling().forward(
        probabilities, kernel_output["seeds"], kernel_output["offsets"], kernel_output["indices"]
    )
    assert torch.equal(tokens, kernel_output["tokens"])
    assert len(set(tokens.tolist())) > 3, "the draws must differ for this to mean anything"
