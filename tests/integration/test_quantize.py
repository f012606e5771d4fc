"""The embedded model is quantized for real: its size is the predicted one, its quality holds, nothing is left over."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab3.checks import judge
from lab3.errors import UsageError
from lab3.evidence import Evidence
from lab3.models import model_tensors, read_config, resolve
from lab3.quantize import SUPPORTED, QuantizeResult, quantize
from lab3.structure import RESIDUAL_BOUND, inspect_structure

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("servers")]

# Measured 1.042 with group size 64; 1.084 before the model was trained through the rounding that AWQ gives it, and
# 1.214 before it was trained through any.
WORST_PERPLEXITY_RATIO = 1.06


@pytest.fixture
def quantized(quantization: QuantizeResult) -> QuantizeResult:
    return quantization


def test_the_size_is_the_predicted_one(quantized: QuantizeResult) -> None:
    assert abs(quantized.prediction_error) < 0.01
    assert quantized.weight_bytes_after < 0.45 * quantized.weight_bytes_before
    assert quantized.folder_bytes_after >= quantized.weight_bytes_after


def test_the_quality_holds(quantized: QuantizeResult) -> None:
    assert quantized.perplexity_before is not None
    assert 5 < quantized.perplexity_before < 15
    assert quantized.perplexity_ratio is not None
    assert 1 < quantized.perplexity_ratio < WORST_PERPLEXITY_RATIO
    assert quantized.perplexity_kv_int4 is not None
    assert quantized.perplexity_after < quantized.perplexity_kv_int4 < 1.1 * quantized.perplexity_after
    assert len(quantized.kv_int4_key_errors) == 30
    assert all(0.02 < error < 0.5 for error in quantized.kv_int4_key_errors)


def test_the_smaller_group_size_is_told(quantized: QuantizeResult) -> None:
    assert quantized.group_size == 64
    assert any("group size 64 instead of 128" in notice for notice in quantized.notices)


def test_the_folder_is_ready_to_serve_and_holds_nothing_else(quantized: QuantizeResult) -> None:
    assert {path.name for path in quantized.out.parent.iterdir()} == {quantized.out.name, "result.json"}
    assert {path.name for path in quantized.out.iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    config = read_config(quantized.out)
    assert config.dtype == "float16"
    assert config.quantization == {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 64, "zero_point": True,
    }  # fmt: skip
    assert {tensor.dtype for tensor in model_tensors(quantized.out)} == {"F16", "I32"}
    source = resolve("embedded") / "chat_template.jinja"
    assert (quantized.out / "chat_template.jinja").read_text() == source.read_text()


def test_lab3_dequantizes_as_lmdeploy_does(quantized: QuantizeResult) -> None:
    import torch
    from lmdeploy.pytorch.backends.default.awq_modules import dequantize_gemm
    from safetensors.torch import load_file

    from lab3.perplexity import dense_state

    packed = load_file(quantized.out / "model.safetensors")
    stem = "model.layers.0.mlp.down_proj"
    theirs = dequantize_gemm(packed[f"{stem}.qweight"], packed[f"{stem}.qzeros"], packed[f"{stem}.scales"], 4, 64)
    ours = dense_state(quantized.out)[f"{stem}.weight"]
    torch.testing.assert_close(ours, theirs.float().t(), rtol=1e-3, atol=1e-4)


def test_every_layer_is_the_source_s_within_4_bit_rounding(quantized: QuantizeResult) -> None:
    """Measured: residuals 0.30 to 0.34 of a step (a layer's worst row or column), steps at most 2.6% off."""
    facts = inspect_structure(quantized.out, source=quantized.source)
    assert facts.problems == ()
    assert (facts.layers_expected, facts.layers_packed, facts.layers_plain) == (210, 210, 0)
    assert (facts.group_size_found, facts.group_size_configured) == (64, 64)
    assert len(facts.sample) == 210
    assert all(layer.rows == layer.of_rows for layer in facts.sample)
    assert all(0.25 < layer.residual < 0.4 and layer.step_error < 0.05 for layer in facts.sample)
    verdicts = judge(Evidence(subject="reference", model="embedded", structure=facts))
    assert next(v.status for v in verdicts if v.id == "quantize.structure") == "pass"


def test_two_swapped_layers_are_found(quantized: QuantizeResult, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spoilt = Path(shutil.copytree(quantized.out, tmp_path / "spoilt"))
    tensors = load_file(quantized.out / "model.safetensors")
    for kind in ("qweight", "qzeros", "scales"):
        a, b = (f"model.layers.{layer}.mlp.down_proj.{kind}" for layer in (11, 23))
        tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, spoilt / "model.safetensors")
    sample = inspect_structure(spoilt, source=quantized.source).sample
    off = {layer.name: layer.residual for layer in sample if layer.residual > RESIDUAL_BOUND}
    assert off.keys() == {"model.layers.11.mlp.down_proj", "model.layers.23.mlp.down_proj"}
    assert min(off.values()) > 2


def test_a_quantized_model_is_not_quantized_again(quantized: QuantizeResult, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"already quantized \(awq\)"):
        quantize(quantized.out, tmp_path / "twice")


def test_calibration_text_too_short_for_a_sample_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(UsageError, match="one sample takes 64"):
        quantize(resolve("embedded"), tmp_path / "out", calibration=tmp_path / "short.txt", seqlen=64)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_killing_the_caller_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from lab3.quantize import quantize; quantize(*map(Path, sys.argv[1:]))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(resolve("embedded")), str(out)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_the_supported_architectures_are_lmdeploys() -> None:
    from lmdeploy.lite.apis.calibrate import LAYER_TYPE_MAP
    from lmdeploy.lite.quantization.awq import NORM_FCS_MAP

    assert all(LAYER_TYPE_MAP[name] in NORM_FCS_MAP for name in SUPPORTED)


def test_the_scale_search_leaves_the_weights_as_they_were() -> None:
    """On a CPU, LMDeploy's search spoils the weights that it tries scales on, unless it is given a real copy."""
    from types import SimpleNamespace

    import torch
    from lmdeploy.lite.quantization import calibration

    from lab3.awq_cpu import search_restores_weights
    from tests.cpu.test_layouts import SHAPE, tiny

    model = tiny("Llama")
    layer = model.model.layers[0]
    ratios = []
    inputs = {
        f"layer.{name}": SimpleNamespace(
            value=torch.randn(1, 16, linear.in_features), save_ratio=lambda ratio: ratios.append(ratio)
        )
        for name, linear in layer.named_modules()
        if isinstance(linear, torch.nn.Linear)
    }
    position = model.model.rotary_emb(torch.zeros(1, 16, SHAPE["hidden_size"]), torch.arange(16)[None])
    before = {name: weight.clone() for name, weight in layer.state_dict().items()}
    with torch.no_grad(), search_restores_weights():
        arguments = {"position_embeddings": position, "attention_mask": None}
        calibration.auto_scale_block(layer, arguments, 4, 32, inputs, "layer")
    assert ratios
    assert all(torch.equal(weight, before[name]) for name, weight in layer.state_dict().items())
