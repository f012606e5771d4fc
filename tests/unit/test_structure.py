"""A quantized folder is known by its tensors: the real one passes, and every folder that only looks like it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab3 import structure
from lab3.checks import judge
from lab3.errors import UsageError
from lab3.evidence import Evidence, StructureFacts
from lab3.structure import check_awq, check_quantizable, inspect_structure
from tests.unit.test_models import CONFIG, write_safetensors

Tensors = dict[str, torch.Tensor]
HIDDEN, MIDDLE, VOCAB, LAYERS, GROUP = 64, 256, 96, 3, 32
BASE = {**CONFIG, "intermediate_size": MIDDLE, "vocab_size": VOCAB, "num_hidden_layers": LAYERS}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True}
# Name → (outputs, inputs), and LMDeploy's maps: a norm or a layer → the layers that take its outputs.
LLAMA = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}  # fmt: skip
INTERNLM2 = {
    "attention.wqkv": (3 * HIDDEN, HIDDEN), "attention.wo": (HIDDEN, HIDDEN), "feed_forward.w1": (MIDDLE, HIDDEN),
    "feed_forward.w3": (MIDDLE, HIDDEN), "feed_forward.w2": (HIDDEN, MIDDLE),
}  # fmt: skip
NAMES = {"llama": "LlamaDecoderLayer", "internlm2": "InternLM2DecoderLayer"}


def plain_model(model_type: str, seed: int) -> Tensors:
    """Random fp16 weights of a tiny decoder."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.05

    from lmdeploy.lite.quantization.awq import NORM_FCS_MAP

    table = "tok_embeddings" if model_type == "internlm2" else "embed_tokens"
    found = {f"model.{table}.weight": random(VOCAB, HIDDEN), "model.norm.weight": 1 + random(HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in (INTERNLM2 if model_type == "internlm2" else LLAMA).items():
            found[f"model.layers.{layer}.{name}.weight"] = random(*shape)
        for norm in NORM_FCS_MAP[NAMES[model_type]]:
            found[f"model.layers.{layer}.{norm}.weight"] = 1 + random(HIDDEN)
    return {name: tensor.half() for name, tensor in found.items()}


def quantized_by_lmdeploy(plain: Tensors, model_type: str, *, dtype: torch.dtype, group: int = GROUP) -> Tensors:
    """What `lite auto_awq` makes of it: inputs scaled, their inverse folded back, rounded, packed. All in `dtype`."""
    from lmdeploy.lite.quantization import WeightQuantizer
    from lmdeploy.lite.quantization.awq import (
        FC_FCS_MAP,
        NORM_FCS_MAP,
        pseudo_quantize_tensor,
        smooth_fc_fcs,
        smooth_ln_fcs,
    )
    from lmdeploy.lite.quantization.modules import WeightOnlyQLinear
    from lmdeploy.lite.utils import QParams

    generator = torch.Generator().manual_seed(1)
    kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    out = {name: tensor.to(kept) for name, tensor in plain.items() if ".layers." not in name}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights = {n.removeprefix(prefix)[: -len(".weight")]: t for n, t in plain.items() if n.startswith(prefix)}
        modules: dict[str, Any] = {}
        for name, weight in weights.items():
            made = torch.nn.RMSNorm(HIDDEN) if weight.ndim == 1 else torch.nn.Linear(*weight.shape[::-1], bias=False)
            made.weight.data = weight.to(dtype).clone()
            modules[name] = made
        for maps, smooth in ((NORM_FCS_MAP, smooth_ln_fcs), (FC_FCS_MAP, smooth_fc_fcs)):
            for before, after in maps[NAMES[model_type]].items():
                inputs = modules[after[0]].in_features
                seen = torch.rand(inputs, generator=generator) * 3 - 1.5
                smooth(modules[before], [modules[name] for name in after], seen.exp().to(dtype), group)
        for name, module in modules.items():
            if not isinstance(module, torch.nn.Linear):
                out[f"{prefix}{name}.weight"] = module.weight.data.to(kept)
                continue
            codes, scales, zeros = pseudo_quantize_tensor(module.weight.data, 4, group, return_scale_zeros=True)
            module.weight.data = codes
            quantizer = WeightQuantizer(4, False, "per_group", group)
            packed = WeightOnlyQLinear.from_linear(module, quantizer, qparams=QParams(scales, zeros))
            parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales.to(kept)}
            out |= {f"{prefix}{name}.{kind}": tensor for kind, tensor in parts.items()}
    return out


def write_model(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**BASE, **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama, and the same quantized."""
    base, plain = tmp_path_factory.mktemp("models"), plain_model("llama", seed=0)
    packed = quantized_by_lmdeploy(plain, "llama", dtype=torch.float32)
    return write_model(base / "plain", plain), write_model(base / "w4a16", packed, quantization_config=AWQ)


@pytest.fixture
def source(made: tuple[Path, Path]) -> Path:
    return made[0]


@pytest.fixture
def quantized(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made[1], tmp_path / "w4a16"))


def verdict(facts: StructureFacts) -> tuple[str, str]:
    found = next(v for v in judge(Evidence(subject="s", model="m", structure=facts)) if v.id == "quantize.structure")
    return found.status, found.reason


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["cpu", "gpu", "gpu-bf16"])
@pytest.mark.parametrize("model_type", ["llama", "internlm2"])
def test_what_lmdeploy_makes_passes_in_every_precision(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plain = plain_model(model_type, seed=3)
    packed = quantized_by_lmdeploy(plain, model_type, dtype=dtype)
    source = write_model(tmp_path / "plain", plain, model_type=model_type)
    spelled = "bfloat16" if dtype == torch.bfloat16 else "float16"
    folder = write_model(tmp_path / "out", packed, model_type=model_type, dtype=spelled, quantization_config=AWQ)
    facts = inspect_structure(folder, source=source)
    count = LAYERS * len(INTERNLM2 if model_type == "internlm2" else LLAMA)
    assert verdict(facts)[0] == "pass", verdict(facts)[1]
    assert (facts.layers_expected, facts.layers_packed, facts.layers_plain) == (count, count, 0)
    assert (facts.group_size_found, facts.group_size_configured, facts.not_compared) == (GROUP, GROUP, None)
    assert len({layer.name for layer in facts.sample}) == count
    assert all(0.2 < layer.residual < 0.45 and layer.step_error < 0.1 for layer in facts.sample)


def test_a_group_of_one_sign_is_clipped_by_lmdeploy_and_not_held_against_the_folder(tmp_path: Path) -> None:
    """Its smallest weight is no zero, so 15 steps from zero do not reach the largest."""
    plain = plain_model("llama", seed=4)
    some = plain[f"{Q}.weight"][7, :GROUP]
    plain[f"{Q}.weight"][7, :GROUP] = some.abs() + 0.1
    plain[f"{Q}.weight"][9] = 0
    packed = quantized_by_lmdeploy(plain, "llama", dtype=torch.float32)
    source = write_model(tmp_path / "plain", plain)
    facts = inspect_structure(write_model(tmp_path / "out", packed, quantization_config=AWQ), source=source)
    assert verdict(facts)[0] == "pass", verdict(facts)[1]


def test_the_scales_of_the_inputs_are_no_small_matter(made: tuple[Path, Path]) -> None:
    """Without the fitted factors the real folder would look like another model's."""
    from lab3.perplexity import dense_state

    name = "model.layers.1.mlp.up_proj.weight"
    plain, dense = load_file(made[0] / "model.safetensors")[name].float(), dense_state(made[1])[name]
    assert (dense - plain).norm() > 0.3 * plain.norm()


def test_without_the_source_nothing_is_compared_and_nothing_claimed(quantized: Path) -> None:
    facts = inspect_structure(quantized)
    assert (facts.sample, facts.not_compared, facts.problems) == ((), "no source model was given", ())
    assert verdict(facts)[0] == "unknown"


Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj"


def swap(tensors: Tensors) -> None:
    for kind in ("qweight", "qzeros", "scales"):
        a, b = Q + "." + kind, Q.replace(".1.", ".2.") + "." + kind
        tensors[a], tensors[b] = tensors[b], tensors[a]


def all_codes_are_the_zero(tensors: Tensors) -> None:
    tensors[f"{UP}.qweight"] = tensors[f"{UP}.qzeros"].repeat_interleave(GROUP, dim=0)


def one_block_of_rows_is_the_zero(tensors: Tensors) -> None:
    zeros = tensors[f"{Q}.qzeros"].repeat_interleave(GROUP, dim=0)
    tensors[f"{Q}.qweight"][:, 3] = zeros[:, 3]


def one_group_is_the_zero(tensors: Tensors) -> None:
    zeros = tensors[f"{Q}.qzeros"].repeat_interleave(GROUP, dim=0)
    tensors[f"{Q}.qweight"][:GROUP] = zeros[:GROUP]


def two_inputs_change_places(tensors: Tensors) -> None:
    tensors[f"{Q}.qweight"][[4, 5]] = tensors[f"{Q}.qweight"][[5, 4]]


def two_outputs_change_places(tensors: Tensors) -> None:
    tensors[f"{Q}.qweight"] = tensors[f"{Q}.qweight"].roll(1, dims=1)


def nibbles_in_gptq_order(tensors: Tensors) -> None:
    from lab3.perplexity import unpack_awq

    for kind in ("qweight", "qzeros"):
        values = unpack_awq(tensors[f"{Q}.{kind}"]).unflatten(1, (-1, 8)).long()
        word = sum(values[:, :, i] << (4 * i) for i in range(8))
        tensors[f"{Q}.{kind}"] = (word - ((word >> 31) << 32)).int()


def negated(tensors: Tensors) -> None:
    for kind in ("qweight", "qzeros"):
        tensors[f"{Q}.{kind}"] = ~tensors[f"{Q}.{kind}"]


def left_in_16_bits(tensors: Tensors) -> None:
    for kind in ("qweight", "qzeros", "scales"):
        del tensors[f"{Q}.{kind}"]
    tensors[f"{Q}.weight"] = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float16)


def left_out(tensors: Tensors) -> None:
    for kind in ("qweight", "qzeros", "scales"):
        del tensors[f"{Q}.{kind}"]


def set_to(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value(tensors[name])

    return change


def first_groups(count: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for kind in ("scales", "qzeros"):
            tensors[f"{Q}.{kind}"] = tensors[f"{Q}.{kind}"].repeat(2, 1)[:count]

    return change


SPOILT: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("two layers are swapped", swap, r"2 of 21 layers are not the source's .*q_proj"),
    ("codes are zeroed", set_to(f"{UP}.qweight", torch.zeros_like), r"1 of 21 .*layers.2.mlp.up_proj"),
    ("all codes mean zero", all_codes_are_the_zero, r"1 of 21 .*layers.2.mlp.up_proj.*steps by 100%"),
    ("eight outputs mean zero", one_block_of_rows_is_the_zero, r"1 of 21 .*layers.1.self_attn.q_proj"),
    ("a group of inputs means zero", one_group_is_the_zero, r"1 of 21 .*q_proj.*steps by 100%"),
    ("two inputs changed places", two_inputs_change_places, r"1 of 21 .*q_proj"),
    ("outputs changed places", two_outputs_change_places, r"1 of 21 .*q_proj"),
    ("the nibbles are in GPTQ's order", nibbles_in_gptq_order, r"1 of 21 .*q_proj"),
    ("the weights are negated", negated, r"1 of 21 .*q_proj"),
    ("the zeros are lost", set_to(f"{Q}.qzeros", torch.zeros_like), r"1 of 21 .*q_proj"),
    ("scales are zeroed", set_to(f"{UP}.scales", torch.zeros_like), r"up_proj has scales that are not positive"),
    ("a scale is not a number", set_to(f"{UP}.scales", lambda s: s / 0), r"up_proj has scales that are not positive"),
    ("the steps of one output are doubled", set_to(
        f"{Q}.scales", lambda s: s * (1 + (torch.arange(HIDDEN) == 5))), r"1 of 21 .*q_proj"),
    ("a layer is left in 16 bits", left_in_16_bits, r"q_proj is left in F16.*20 of 21 linear layers packed, 1 plain"),
    ("a layer is left out", left_out, r"q_proj is missing; 20 of 21 linear layers packed, 0 plain"),
    ("scales are missing", lambda t: t.pop(f"{Q}.scales"), r"q_proj has no scales"),
    ("zeros are missing", lambda t: t.pop(f"{Q}.qzeros"), r"q_proj has no qzeros"),
    ("16-bit weights lie beside the packed", lambda t: t.update(
        {f"{Q}.weight": torch.zeros(HIDDEN, HIDDEN).half()}), r"q_proj is left in F16"),
    ("half of the inputs", set_to(f"{Q}.qweight", lambda w: w[:32]), r"q_proj.qweight is I32 \(32, 8\), not I32 \(64"),
    ("codes in 64 bits", set_to(f"{Q}.qweight", torch.Tensor.long), r"q_proj.qweight is I64"),
    ("scales in 32 bits", set_to(f"{Q}.scales", torch.Tensor.float), r"q_proj.scales is F32"),
    ("scales of other groups", set_to(f"{Q}.scales", lambda s: s[:1]), r"q_proj.qzeros is I32 \(2, 8\)"),
    ("one layer has larger groups", first_groups(1), r"groups of 32 inputs, and the scales are for groups of 64"),
    ("groups that do not divide the inputs", first_groups(3), r"q_proj has 3 groups for 64 inputs"),
    ("another layer than the config's", lambda t: t.update(
        {"model.layers.7.mlp.up_proj.qweight": torch.zeros(8, 8).int()}), r"layers.7.mlp.up_proj is packed, and"),
    ("an unknown matrix", lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.zeros(8, 8).half()}),
     r"extra is a matrix that the config does not know"),
    ("the embeddings are cut", set_to("model.embed_tokens.weight", lambda w: w[:90]), r"embed_tokens.weight is \(90,"),
    ("the embeddings are gone", lambda t: t.pop("model.embed_tokens.weight"), r"the embeddings are missing"),
    ("a norm in 32 bits", set_to("model.norm.weight", torch.Tensor.float), r"model.norm.weight is F32, and config"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), [s[1:] for s in SPOILT], ids=[s[0] for s in SPOILT])
def test_a_spoilt_folder_fails_and_is_told_why(
    source: Path, quantized: Path, spoil: Callable[[Tensors], Any], said: str
) -> None:
    import re

    tensors = load_file(quantized / "model.safetensors")
    spoil(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, quantized / "model.safetensors")
    status, reason = verdict(inspect_structure(quantized, source=source))
    assert status == "fail"
    assert re.search(said, reason), reason


GATE, DOWN = "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"


def one_output_is_the_zero(tensors: Tensors) -> None:
    """Nibble 0 of a word is its first output; of 256, too few to move the mean over an input."""
    words = tensors[f"{GATE}.qweight"]
    words[:, 3] = (words[:, 3] & ~15) | (tensors[f"{GATE}.qzeros"].repeat_interleave(GROUP, dim=0)[:, 3] & 15)


def two_of_256_inputs_change_places(tensors: Tensors) -> None:
    tensors[f"{DOWN}.qweight"][[4, 5]] = tensors[f"{DOWN}.qweight"][[5, 4]]


@pytest.mark.parametrize(
    ("spoil", "layers"),
    [
        (swap, {Q, Q.replace(".1.", ".2.")}), (two_outputs_change_places, {Q}), (negated, {Q}),
        (nibbles_in_gptq_order, {Q}), (one_output_is_the_zero, {GATE}), (two_of_256_inputs_change_places, {DOWN}),
    ],
)  # fmt: skip
def test_the_residual_alone_names_the_spoilt_layers(
    source: Path, quantized: Path, spoil: Callable[[Tensors], Any], layers: set[str]
) -> None:
    tensors = load_file(quantized / "model.safetensors")
    spoil(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, quantized / "model.safetensors")
    facts = inspect_structure(quantized, source=source)
    off = {layer.name: layer.residual for layer in facts.sample if layer.residual > facts.residual_bound}
    assert off.keys() == layers
    assert min(off.values()) > 1.5  # that of the worst row or column itself, not of what it does to the others


def test_a_16_bit_folder_that_is_named_w4a16_fails(source: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(source, tmp_path / "model-w4a16"))
    for claim in ({}, {"quantization_config": AWQ}):
        configure(renamed, **claim)
        facts = inspect_structure(renamed, source=source)
        assert (facts.layers_packed, facts.layers_plain, facts.group_size_found) == (0, 21, None)
        assert verdict(facts)[0] == "fail"
        assert len(facts.problems) == 21
        assert facts.problems[-1].startswith("and ")


def test_another_model_of_the_same_shape_fails_in_every_layer(source: Path, quantized: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", plain_model("llama", seed=1))
    facts = inspect_structure(quantized, source=other)
    assert all(layer.residual > 1.5 for layer in facts.sample)
    assert verdict(facts)[1].startswith("21 of 21 layers are not the source's")


def test_a_model_of_another_shape_is_named(source: Path, quantized: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    other = write_model(quantized.with_name("other"), {**tensors, f"{UP}.weight": torch.zeros(8, 8).half()})
    facts = inspect_structure(quantized, source=other)
    assert facts.problems == (f"{UP}: the source's weight is (8, 8), not ({MIDDLE}, {HIDDEN})",)


@pytest.mark.parametrize("told", [64, 128, None, "32"])
def test_a_wrong_group_size_in_the_config_fails(source: Path, quantized: Path, told: Any) -> None:
    configure(quantized, quantization_config={**AWQ, "group_size": told})
    facts = inspect_structure(quantized, source=source)
    assert facts.group_size_found == GROUP
    status, reason = verdict(facts)
    assert status == "fail"
    assert "the scales are for groups of 32" in reason


def test_a_config_that_tells_nothing_fails(source: Path, quantized: Path) -> None:
    (quantized / "config.json").write_text(json.dumps(BASE))
    assert verdict(inspect_structure(quantized, source=source)) == (
        "fail", "config.json has no quantization_config; group size 32, and config.json says None",
    )  # fmt: skip


def test_a_config_of_another_shape_fails(source: Path, quantized: Path) -> None:
    configure(quantized, num_hidden_layers=LAYERS + 1)
    facts = inspect_structure(quantized, source=source)
    assert (facts.layers_expected, facts.layers_packed) == (28, 21)
    assert verdict(facts)[0] == "fail"


def test_an_unknown_architecture_is_measured_by_its_source(source: Path, quantized: Path) -> None:
    configure(quantized, model_type="new")
    assert verdict(inspect_structure(quantized, source=source))[0] == "pass"
    assert verdict(inspect_structure(quantized))[0] == "unknown"
    tensors = load_file(quantized / "model.safetensors")
    left_out(tensors)
    save_file(tensors, quantized / "model.safetensors")
    facts = inspect_structure(quantized, source=source)
    assert facts.problems == (f"{Q} is missing",)


def test_the_outputs_of_a_layer_of_unknown_name_may_be_scaled(source: Path, quantized: Path) -> None:
    """Fused layers have names of their own (Phi-3's gate_up_proj), and carry the next layer's scales."""
    other = quantized.with_name("other")
    for made, out in ((source, other), (quantized, quantized)):
        tensors = load_file(made / "model.safetensors")
        renamed = {name.replace("mlp.up_proj", "mlp.fused"): tensor.clone() for name, tensor in tensors.items()}
        write_model(out, renamed, model_type="new", **({"quantization_config": AWQ} if made == quantized else {}))
    facts = inspect_structure(quantized, source=other)
    assert verdict(facts)[0] == "pass", verdict(facts)[1]
    assert any(layer.name.endswith("mlp.fused") for layer in facts.sample)


class TestLargeLayers:
    """Of a large layer some blocks of rows are read."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(structure, "_SAMPLE_ELEMENTS", 2 * 64 * HIDDEN)

    def test_some_rows_are_compared_and_of_every_layer(self, source: Path, quantized: Path) -> None:
        facts = inspect_structure(quantized, source=source)
        assert verdict(facts)[0] == "pass", verdict(facts)[1]
        read = {(layer.name.rpartition(".")[2], layer.rows, layer.of_rows) for layer in facts.sample}
        assert {("up_proj", 128, 256), ("q_proj", 64, 64)} <= read
        assert len(facts.sample) == 21

    def test_which_rows_is_the_seeds_choice(self, source: Path, quantized: Path) -> None:
        first, again, other = (inspect_structure(quantized, source=source, seed=seed).sample for seed in (0, 0, 1))
        assert first == again
        assert first != other

    def test_a_swap_is_seen_in_the_sample(self, source: Path, quantized: Path) -> None:
        tensors = load_file(quantized / "model.safetensors")
        for kind in ("qweight", "qzeros", "scales"):
            a, b = f"{UP}.{kind}", f"{UP}.{kind}".replace(".2.", ".0.")
            tensors[a], tensors[b] = tensors[b], tensors[a]
        save_file(tensors, quantized / "model.safetensors")
        assert "2 of 21 layers" in verdict(inspect_structure(quantized, source=source))[1]

    def test_no_more_of_a_tensor_is_read(self, source: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: dict[str, int] = {}
        cut = structure._Reader.cut

        def recorded(self: Any, name: str, *args: Any, **options: Any) -> Any:
            part = cut(self, name, *args, **options)
            read[name] = part.numel()
            return part

        monkeypatch.setattr(structure._Reader, "cut", recorded)
        inspect_structure(quantized, source=source)
        assert {kind: read[f"{UP}.{kind}"] for kind in ("weight", "qweight", "qzeros", "scales")} == {
            "weight": 128 * HIDDEN, "qweight": 128 // 8 * HIDDEN, "qzeros": 128 // 8 * 2, "scales": 128 * 2,
        }  # fmt: skip


def test_a_truncated_shard_is_refused(source: Path, quantized: Path) -> None:
    whole = (quantized / "model.safetensors").read_bytes()
    (quantized / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="not a complete safetensors file"):
        inspect_structure(quantized, source=source)


def test_a_folder_without_config_is_refused(source: Path, quantized: Path) -> None:
    (quantized / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        inspect_structure(quantized, source=source)


def test_a_quantized_source_is_refused(quantized: Path) -> None:
    with pytest.raises(UsageError, match=r"already quantized \(awq\)"):
        inspect_structure(quantized, source=quantized)


def test_a_source_in_torchs_own_format_is_not_compared(source: Path, quantized: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(source, tmp_path / "old"))
    (old / "model.safetensors").rename(old / "pytorch_model.bin")
    facts = inspect_structure(quantized, source=old)
    assert "not in safetensors files" in (facts.not_compared or "")
    assert verdict(facts)[0] == "unknown"


# --- input that cannot be used --------------------------------------------------------------------------------------


def tiny(folder: Path, tensors: dict[str, tuple[str, list[int], int]] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", tensors or {"model.norm.weight": ("F16", [2], 4)})
    return folder


def told(error: pytest.ExceptionInfo[UsageError]) -> str:
    assert error.value.why
    assert error.value.todo
    return error.value.what


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantized_model_is_not_quantized_again(tmp_path: Path, method: str) -> None:
    with pytest.raises(UsageError) as error:
        check_quantizable(tiny(tmp_path, quantization_config={"quant_method": method}))
    assert told(error) == f"{tmp_path} is already quantized ({method})"


def test_a_quantization_without_a_method_counts_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by an unknown method"):
        check_quantizable(tiny(tmp_path, quantization_config={"bits": 4}))


def test_a_config_that_hides_the_quantization_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="packed weights") as error:
        check_quantizable(tiny(tmp_path, {"model.layers.0.mlp.up_proj.qweight": ("I32", [1], 4)}))
    assert told(error)
    with pytest.raises(UsageError, match="F8_E4M3 weights"):
        check_quantizable(tiny(tmp_path, {"model.layers.0.mlp.up_proj.weight": ("F8_E4M3", [4], 4)}))
    tiny(tmp_path)
    (tmp_path / "quantize_config.json").write_text("{}")
    with pytest.raises(UsageError, match="gptq"):
        check_quantizable(tmp_path)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_plain_model_can_be_quantized(tmp_path: Path, dtype: str) -> None:
    check_quantizable(tiny(tmp_path, {"model.norm.weight": (dtype, [1], 4 if dtype == "F32" else 2)}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "not quantized"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by gptq with 4 bits"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized by fp8"),
        ({"quantization_config": {**AWQ, "bits": 8}}, "quantized by awq with 8 bits"),
    ],
)
def test_where_awq_is_needed_nothing_else_will_do(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        check_awq(tiny(tmp_path, **config))
    assert told(error) == f"{tmp_path} is {said}, and AWQ with 4 bits is needed"


def test_awq_is_awq(tmp_path: Path) -> None:
    check_awq(tiny(tmp_path, quantization_config=AWQ))
