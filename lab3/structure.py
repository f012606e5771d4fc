"""What a quantized folder holds, tensor by tensor, and whether it is the source model's weights in 4 bits.

A folder's name, its config and an exit code prove nothing: this reads headers, unpacks weights and judges nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.evidence import LayerSample, StructureFacts
from lab3.models import ModelConfig, TensorFact, check_folder, model_tensors, read_config

# Rounding to the nearest of 16 steps moves no weight by more than half a step, so no root mean square over them either;
# evenly spread errors give 1/sqrt(12) = 0.29. Weights of another model are as far off as they are large: about 3 steps.
RESIDUAL_BOUND = 0.5
# AWQ's step is (max - min) / 15 of its group. The fit knows each end to one step: half by its rounding, and less than
# half by the error of the fitted factor.
STEP_BOUND = 2 / 15

_SAMPLE_ELEMENTS = 2**20  # of a linear layer: every weight of a small model, some rows of a large one
_BLOCK_ROWS = 64  # rows that are read at once, and the fewest that are compared
_FIT_ROUNDS = 5  # of rows and columns in turn; on the embedded model the fourth decimal stands still after three
_PROBLEMS_TOLD = 20
_AWQ_DTYPES = {"qweight": ("I32",), "qzeros": ("I32",), "scales": ("F16", "BF16")}
_SPELLED = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_TABLES = ("model.embed_tokens.weight", "model.tok_embeddings.weight", "lm_head.weight", "output.weight")
_LLAMA_NAMES = frozenset({"llama", "mistral", "qwen2", "qwen3", "internlm3"})
# Layers whose outputs carry the inverse of the next layer's scales (LMDeploy 0.18's FC_FCS_MAP): v → o, up → down.
_SCALED_ROWS = ("v_proj", "up_proj", "feed_forward.w3")
_UNSCALED_ROWS = (
    "q_proj", "k_proj", "o_proj", "gate_proj", "down_proj",
    "attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
)  # fmt: skip


def inspect_structure(folder: Path, *, source: Path | None = None, seed: int = 0) -> StructureFacts:
    """The facts of a quantized folder, and of its weights next to those of `source`, the 16-bit model it was made of.

    Every linear layer is compared, so that two swapped ones are seen: whole up to 2**20 weights, else seeded blocks of
    64 rows. A layer at a time is in memory, and of it the sample alone. Without `source`, or with one that has no
    safetensors, nothing is compared and `not_compared` says why.

    Raises UsageError for a folder that is no complete model (`lab3.models.check_folder`) and a `source` that is
    quantized itself.
    """
    config = read_config(check_folder(folder))
    tensors = {tensor.name: tensor for tensor in model_tensors(folder)}
    plain_source: dict[str, TensorFact] = {}
    not_compared = "no source model was given" if source is None else None
    if source is not None:
        check_quantizable(check_folder(source))
        plain_source = {tensor.name: tensor for tensor in model_tensors(source)}
        if not plain_source:
            not_compared = f"the weights of {source} are not in safetensors files"
    expected = _linear_layers(config, plain_source or tensors)
    layers, problems = _Layers(tensors, expected), _table_problems(config, tensors)
    sizes = {layers.group_size(name) for name in layers.packed}
    configured = _int((config.quantization or {}).get("group_size"))
    if config.quantization is None:
        problems.append("config.json has no quantization_config")
    elif (wrong := sizes - {configured}) and layers.packed:
        found = ", ".join(str(size) for size in sorted(wrong))
        problems.append(f"config.json says groups of {configured} inputs, and the scales are for groups of {found}")
    sample: list[LayerSample] = []
    if not not_compared:
        with ExitStack() as stack:
            packed_files, source_files = _Reader(tensors, stack), _Reader(plain_source, stack)
            for name in layers.packed:
                if fault := _source_fault(plain_source.get(f"{name}.weight"), expected[name]):
                    problems.append(f"{name}: {fault}")
                    continue
                compared = _compare(name, packed_files, source_files, random.Random(f"{seed} {name}"))
                if compared is None:
                    problems.append(f"{name} has scales that are not positive numbers")
                else:
                    sample.append(compared)
    problems = [*layers.problems, *problems]
    if more := len(problems) - _PROBLEMS_TOLD:
        problems = problems if more < 0 else [*problems[:_PROBLEMS_TOLD], f"and {more} more of this kind"]
    return StructureFacts(
        layers_expected=len(expected),
        layers_packed=len(layers.packed),
        layers_plain=layers.plain,
        group_size_found=next(iter(sizes)) if len(sizes) == 1 else None,
        group_size_configured=configured,
        sample=tuple(sample),
        residual_bound=RESIDUAL_BOUND,
        step_bound=round(STEP_BOUND, 4),
        not_compared=not_compared,
        problems=tuple(problems),
    )


def check_quantizable(folder: Path) -> None:
    """Raises UsageError if the model in `folder` is quantized already, in whatever way; the config or the tensors tell.

    `folder` is a complete model (`lab3.models.check_folder`).
    """
    method = _method(folder)
    if method is not None:
        raise UsageError(
            f"{folder} is already quantized ({method})",
            why="its weights are rounded; rounding them once more costs quality, and LMDeploy's AWQ reads 16 bits only",
            todo="pass the fp16 or bf16 model it was made of",
        )


def check_awq(folder: Path) -> None:
    """Raises UsageError if the complete model in `folder` is not AWQ with 4 bits, as `lab3 quantize` makes it."""
    method = _method(folder)
    bits = _int((read_config(folder).quantization or {}).get("bits"))
    if (method, bits) != ("awq", 4):
        found = f"quantized by {method}" + (f" with {bits} bits" if bits else "") if method else "not quantized"
        raise UsageError(
            f"{folder} is {found}, and AWQ with 4 bits is needed",
            why="config.json names another quant_method" if method else "config.json has no quantization_config",
            todo="make it of the fp16 or bf16 model: lab3 quantize MODEL --out FOLDER",
        )


def _method(folder: Path) -> str | None:
    """How a model is quantized; None for plain weights. The tensors are asked where the config does not say."""
    config = read_config(folder).quantization
    if config is not None:
        return str(config.get("quant_method") or "by an unknown method").lower()
    if (folder / "quantize_config.json").is_file():  # AutoGPTQ's own file
        return "gptq"
    tensors = model_tensors(folder)
    if any(tensor.name.endswith(".qweight") for tensor in tensors):
        return "packed weights, of which config.json says nothing"
    eight_bits = sorted({tensor.dtype for tensor in tensors if tensor.dtype.startswith(("F8", "I8", "U8"))})
    return f"{', '.join(eight_bits)} weights, of which config.json says nothing" if eight_bits else None


# ------------------------------------------------------------------------------------------------------- the headers


def _linear_layers(config: ModelConfig, known: Mapping[str, TensorFact]) -> dict[str, tuple[int, int]]:
    """Name → (outputs, inputs) of the decoder's linear layers.

    From the config for Llama's and InternLM2's names; for others the matrices of `known`, the source's tensors or, for
    want of a source, those of the folder itself.
    """
    hidden, middle = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    if config.model_type == "internlm2":
        shapes = {
            "attention.wqkv": (queries + 2 * keys, hidden), "attention.wo": (hidden, queries),
            "feed_forward.w1": (middle, hidden), "feed_forward.w3": (middle, hidden),
            "feed_forward.w2": (hidden, middle),
        }  # fmt: skip
    elif config.model_type in _LLAMA_NAMES:
        shapes = {
            "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden), "mlp.down_proj": (hidden, middle),
        }  # fmt: skip
    else:
        plain = {t.name.removesuffix(".weight"): (t.shape[0], t.shape[1]) for t in known.values() if _is_matrix(t)}
        packed = {
            t.name.removesuffix(".qweight"): (8 * t.shape[1], t.shape[0])
            for t in known.values()
            if t.name.endswith(".qweight") and len(t.shape) == 2
        }
        return plain | packed
    return {f"model.layers.{i}.{kind}": shape for i in range(config.layers) for kind, shape in shapes.items()}


class _Layers:
    """The linear layers of a folder, sorted into those packed as AWQ packs, those left plain, and what is wrong."""

    def __init__(self, tensors: Mapping[str, TensorFact], expected: Mapping[str, tuple[int, int]]) -> None:
        self._tensors = tensors
        self.packed: list[str] = []
        self.problems: list[str] = []
        for name, shape in expected.items():
            faults = self._faults(name, outputs=shape[0], inputs=shape[1])
            self.problems += faults
            if not faults:
                self.packed.append(name)
        plain = [tensor.name.removesuffix(".weight") for tensor in tensors.values() if _is_matrix(tensor)]
        self.plain = len(plain)
        self.problems += [f"{name} is a matrix that the config does not know" for name in plain if name not in expected]
        packed = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
        self.problems += [f"{name} is packed, and should not be there" for name in sorted(packed - expected.keys())]

    def group_size(self, name: str) -> int:
        """Inputs that share a scale."""
        return self._tensors[f"{name}.qweight"].shape[0] // self._tensors[f"{name}.scales"].shape[0]

    def _faults(self, name: str, *, outputs: int, inputs: int) -> list[str]:
        """qweight int32 [inputs, outputs/8], scales 16-bit [groups, outputs], qzeros int32 [groups, outputs/8]."""
        plain = self._tensors.get(f"{name}.weight")
        if plain is not None:
            return [f"{name} is left in {plain.dtype}"]
        found = {kind: self._tensors.get(f"{name}.{kind}") for kind in _AWQ_DTYPES}
        if lacking := [kind for kind, tensor in found.items() if tensor is None]:
            return [f"{name} is missing" if len(lacking) == len(found) else f"{name} has no {' and no '.join(lacking)}"]
        scales = found["scales"]
        groups = scales.shape[0] if scales and scales.shape and scales.shape[0] else 1
        shapes = {"qweight": (inputs, outputs // 8), "qzeros": (groups, outputs // 8), "scales": (groups, outputs)}
        faults = [
            f"{name}.{kind} is {tensor.dtype} {tensor.shape}, not {_AWQ_DTYPES[kind][0]} {shapes[kind]}"
            for kind, tensor in found.items()
            if tensor and (tensor.dtype not in _AWQ_DTYPES[kind] or tensor.shape != shapes[kind])
        ]
        return faults or ([f"{name} has {groups} groups for {inputs} inputs"] if inputs % groups else [])


def _table_problems(config: ModelConfig, tensors: Mapping[str, TensorFact]) -> list[str]:
    """What stays 16-bit: embeddings and output layer [vocab, hidden], norms and biases, in the config's dtype."""
    problems = [
        f"{name} is {tensors[name].shape}, and config.json says {(config.vocab_size, config.hidden_size)}"
        for name in _TABLES
        if name in tensors and tensors[name].shape != (config.vocab_size, config.hidden_size)
    ]
    if not any(name in tensors for name in _TABLES[:2]) and config.model_type in _LLAMA_NAMES | {"internlm2"}:
        problems.append("the embeddings are missing")
    wanted = _SPELLED.get(config.dtype)
    odd = [t for t in tensors.values() if t.name.endswith((".weight", ".bias")) and t.dtype != wanted]
    problems += [f"{t.name} is {t.dtype}, and config.json says {config.dtype}" for t in odd if not _is_matrix(t)]
    return problems


def _is_matrix(tensor: TensorFact) -> bool:
    """A linear layer's plain weight, of the decoder's layers: embeddings and output stand outside of them."""
    return tensor.name.endswith(".weight") and "model.layers." in tensor.name and len(tensor.shape) == 2


def _source_fault(plain: TensorFact | None, shape: tuple[int, int]) -> str | None:
    if plain is None:
        return "the source has no such layer"
    return None if plain.shape == shape else f"the source's weight is {plain.shape}, not {shape}"


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# ------------------------------------------------------------------------------------------------------- the weights


class _Reader:
    """Rows or columns of a folder's tensors, without reading the rest of them."""

    def __init__(self, tensors: Mapping[str, TensorFact], stack: ExitStack) -> None:
        from safetensors import safe_open

        self._tensors = tensors
        files = {tensor.file for tensor in tensors.values()}
        self._open = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}

    def cut(self, name: str, spans: list[slice], *, dim: int, per_row: int = 1) -> Any:
        """The `spans` of rows of a layer, where an element along `dim` holds `per_row` of them, one after the other."""
        import torch

        whole = self._open[self._tensors[name].file].get_slice(name)
        places = [slice(span.start // per_row, span.stop // per_row) for span in spans]
        return torch.cat([whole[place] if dim == 0 else whole[:, place] for place in places], dim=dim)


def _compare(name: str, packed: _Reader, source: _Reader, chance: random.Random) -> LayerSample | None:
    """A layer's weights next to the source's, in quantization steps; None if a scale is not a positive number."""
    import torch

    from lab3.perplexity import unpack_awq

    outputs, inputs = source._tensors[f"{name}.weight"].shape
    spans = _spans(outputs, inputs, chance)
    codes = unpack_awq(packed.cut(f"{name}.qweight", spans, dim=1, per_row=8))
    zeros = unpack_awq(packed.cut(f"{name}.qzeros", spans, dim=1, per_row=8))
    steps = packed.cut(f"{name}.scales", spans, dim=1).float().t()
    weight = source.cut(f"{name}.weight", spans, dim=0).float()
    if not (torch.isfinite(steps).all() and (steps > 0).all()):
        return None
    group = inputs // steps.shape[1]
    lowest = -zeros.repeat_interleave(group, dim=0).t().float()
    rounded = codes.t().float() + lowest
    rows = name.endswith(_SCALED_ROWS) or not name.endswith(_UNSCALED_ROWS)
    residual, step_error = _explain(rounded, lowest, weight, steps, rows=rows)
    return LayerSample(
        name=name, rows=len(weight), of_rows=outputs, residual=round(residual, 4), step_error=round(step_error, 4)
    )


def _spans(outputs: int, inputs: int, chance: random.Random) -> list[slice]:
    """All rows of a small layer at once; of a large one as many blocks, in order, as the sample's elements allow."""
    if inputs * outputs <= _SAMPLE_ELEMENTS:
        return [slice(0, outputs)]
    starts = range(0, outputs, _BLOCK_ROWS)
    wanted = max(_SAMPLE_ELEMENTS // (inputs * _BLOCK_ROWS), 1)
    chosen = chance.sample(starts, min(wanted, len(starts)))
    return [slice(start, min(start + _BLOCK_ROWS, outputs)) for start in sorted(chosen)]


def _explain(rounded: Any, lowest: Any, weight: Any, steps: Any, *, rows: bool) -> tuple[float, float]:
    """(residual, step error) of whole numbers `rounded` [N, K] (code - zero) for `weight` [N, K], `steps` [N, K/g].

    `lowest` [N, K] is the number of code 0: what lies outside of lowest .. lowest + 15 is clipped before it is rounded,
    as LMDeploy does with a group of one sign.

    AWQ rounds W'[n, k] = W[n, k] * c[k] (/ r[n] where `rows`), with factors c of the inputs that the norm or the layer
    before takes back, and r of the outputs that the next layer takes back. Both are fitted here, by least squares in
    units of the step s of each group, as positive numbers: rounded ≈ W * c / (r * s).

    residual: the largest root mean square, over a row or a column, of what the fit leaves, in steps (RESIDUAL_BOUND).
    Worst rows and columns, because a mean over the layer hides a few spoilt ones. Weights that are all zero fit with
    c = 0 and leave nothing; but then the steps are not those of the fitted weights.
    step error: the largest |(max - min) / 15 of a fitted group, over its step, - 1| (STEP_BOUND).
    """
    group = weight.shape[1] // steps.shape[1]
    scaled = weight / steps.repeat_interleave(group, dim=1)
    row_factors = scaled.new_ones(len(scaled), 1)
    if rows:
        row_factors = rounded.norm(dim=1, keepdim=True) / scaled.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for _ in range(_FIT_ROUNDS if rows else 1):
        column_factors = _positive_fit(rounded, scaled * row_factors, dim=0)
        if rows:
            row_factors = _positive_fit(rounded, scaled * column_factors, dim=1)
    fitted = scaled * row_factors * column_factors
    squares = (rounded - fitted.clamp(lowest, lowest + 15)).square()
    residual = max(float(squares.mean(0).max()), float(squares.mean(1).max())) ** 0.5
    groups = fitted.unflatten(1, (-1, group))
    # LMDeploy takes groups narrower than 1e-5 for that wide, so that no step is zero.
    ranges = (groups.amax(2) - groups.amin(2)).maximum(1e-5 / steps)
    return residual, float((ranges / 15 - 1).abs().max())


def _positive_fit(target: Any, basis: Any, *, dim: int) -> Any:
    """For each column (dim 0) or row (dim 1), the factor f >= 0 that makes basis * f closest to target."""
    squares = basis.square().sum(dim, keepdim=True).clamp_min(1e-12)
    return ((target * basis).sum(dim, keepdim=True) / squares).clamp_min(0)
