"""What lab3 leaves out of LMDeploy's AWQ changes no number: LMDeploy's own functions are run beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lab3.awq_speed import loaded_already, only_what_is_used, packed_at_once, resident, weights_fit
from lab3.errors import InfraError
from tests.cpu.test_layouts import SHAPE, tiny
from tests.unit.test_models import CONFIG, write_safetensors


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_packed_at_once_has_the_bits_of_lmdeploys(bias: bool) -> None:
    from lmdeploy.lite.quantization import WeightQuantizer
    from lmdeploy.lite.quantization.awq import pseudo_quantize_tensor
    from lmdeploy.lite.quantization.modules import WeightOnlyQLinear
    from lmdeploy.lite.utils import QParams

    linear = torch.nn.Linear(96, 40, bias=bias)
    with torch.no_grad():
        values, scales, zeros = pseudo_quantize_tensor(linear.weight, 4, 32, return_scale_zeros=True)
        linear.weight.copy_(values)
    assert values.max() == 15  # so that the last nibble reaches the sign

    def packed() -> Any:
        quantizer = WeightQuantizer(4, False, "per_group", 32)
        return WeightOnlyQLinear.from_linear(linear, quantizer, qparams=QParams(scales, zeros))

    theirs = packed()
    with packed_at_once():
        ours = packed()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert tensor.dtype == ours.state_dict()[name].dtype
        assert torch.equal(tensor, ours.state_dict()[name]), name
    assert (ours.in_features, ours.out_features, ours.group_size, ours.w_bit) == (96, 40, 32, 4)


def calibrated(model: Any, data: torch.Tensor, folder: Path) -> dict[str, torch.Tensor]:
    from lmdeploy.lite.quantization import CalibrationContext
    from lmdeploy.lite.utils.global_avail import GlobalAvailMixin

    GlobalAvailMixin._instances.clear()
    context = CalibrationContext(model, None, "LlamaDecoderLayer", "LlamaRMSNorm", batch_size=2, device="cpu")
    with context:
        context.calibrate(data)
    folder.mkdir()
    context.export(folder)
    found = torch.load(folder / "inputs_stats.pth")["absmax"]
    return {name: value.float() for name, value in found.items()}


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (5, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)


def test_the_largest_inputs_are_those_that_lmdeploy_finds(data: torch.Tensor, tmp_path: Path) -> None:
    model = tiny("Llama")
    model.config.use_cache = False
    theirs = calibrated(model, data, tmp_path / "theirs")
    with only_what_is_used():
        ours = calibrated(model, data, tmp_path / "ours")
    assert len(theirs) == 7 * SHAPE["num_hidden_layers"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].min() > 0 for name in theirs)


def test_an_activation_that_is_nan_is_still_found(data: torch.Tensor, tmp_path: Path) -> None:
    model = tiny("Llama")
    model.config.use_cache = False
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    with only_what_is_used(), pytest.raises(AssertionError, match="NaN"):
        calibrated(model, data, tmp_path / "ours")


def test_a_resident_module_is_not_put_aside_and_moves_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    module = torch.nn.Linear(2, 2, device="meta")  # which cannot be moved to a CPU at all
    with resident():
        assert module.to("cpu").weight.device.type == "meta"
        assert torch.nn.Linear(2, 2).to("meta").weight.device.type == "meta"
        assert torch.nn.Linear(2, 2).to(torch.float16).weight.dtype == torch.float16
        torch.cuda.empty_cache()
    assert emptied == []
    torch.cuda.empty_cache()
    assert emptied == [None]
    with pytest.raises(NotImplementedError):
        module.to("cpu")


def test_a_model_that_is_loaded_is_not_loaded_again(tmp_path: Path) -> None:
    from lmdeploy.lite.apis import calibrate

    network = tiny("Llama")
    theirs = calibrate.load_hf_from_pretrained
    with loaded_already(network):
        assert calibrate.load_hf_from_pretrained("nowhere", dtype="float16", trust_remote_code=False) is network
    assert network.config.use_cache is False
    assert calibrate.load_hf_from_pretrained is theirs


@pytest.mark.parametrize(
    ("tokens", "batch_bytes", "need"),
    [
        (0, 0, 2 * 10_000 + 6_250),  # 16-bit weights and the packed ones
        (4096, 1_000, 2 * 10_000 + 3 * 2 * 4096 * CONFIG["hidden_size"] + 1_000),  # and states of many tokens
    ],
)
def test_a_model_fits_if_nine_tenths_of_what_is_free_hold_it(
    tmp_path: Path, tokens: int, batch_bytes: int, need: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path / "model.safetensors", {"weight": ("BF16", [100, 100], 20_000)})
    least = -(-need * 10 // 9)
    assert weights_fit(tmp_path, tokens=tokens, batch_bytes=batch_bytes, free_bytes=least)
    assert not weights_fit(tmp_path, tokens=tokens, batch_bytes=batch_bytes, free_bytes=least - 2)


def test_another_lmdeploy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmdeploy.lite.quantization.activation import ActivationObserver

    def observe(self: Any, x: Any, save_input: bool = False, masked: bool = False) -> None:
        """As a later LMDeploy might have it."""

    monkeypatch.setattr(ActivationObserver, "observe", observe)
    with pytest.raises(InfraError, match="observe"), only_what_is_used():
        pass
