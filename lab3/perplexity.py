"""How much a model lost by quantization: its perplexity on text, for a plain folder and for an AWQ one alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.models import read_config, weight_files
from lab3.progress import Progress, silent

# The nibble of an int32 that holds column 8*i + j, j = 0..7 (AWQ's "gemm" packing, LMDeploy's `pack_order` inverted).
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def perplexity(
    model: Path,
    sequences: Sequence[Sequence[int]],
    *,
    device: str = "cpu",
    window_tokens: int = 1024,
    progress: Progress = silent,
) -> float:
    """exp of the mean negative log-likelihood of a token, all sequences weighted by their tokens.

    `sequences` are token ids. Each is cut into windows of at most `window_tokens`, which do not overlap. The prefix
    that all sequences share (the chat template's system message) and the first token of a window are read but not
    scored. Computed in fp32 on the CPU and in fp16 elsewhere; AWQ weights are dequantized first, so the figure shows
    what the rounding of the weights costs and nothing else.

    Raises UsageError when there is nothing to score, or the folder is remote code (which lab3 does not run).
    """
    windows = _windows(sequences, window_tokens)  # so that bad input is refused before the model is read
    return _score(load_for_evaluation(model, device=device), windows, progress)


def measure(
    network: Any, sequences: Sequence[Sequence[int]], *, window_tokens: int = 1024, progress: Progress = silent
) -> float:
    """`perplexity` of a transformers model that is loaded already."""
    return _score(network, _windows(sequences, window_tokens), progress)


def _score(network: Any, windows: Sequence[tuple[list[int], int]], progress: Progress) -> float:
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for number, (ids, first) in enumerate(windows):
            progress("measuring perplexity", done=number, total=len(windows))
            batch = torch.tensor([ids], device=network.device)
            logits = network(batch).logits[0, first - 1 : -1].float()
            total += float(torch.nn.functional.cross_entropy(logits, batch[0, first:], reduction="sum"))
            tokens += len(ids) - first
    progress("measuring perplexity", done=len(windows), total=len(windows))
    return math.exp(total / tokens)


def _windows(sequences: Sequence[Sequence[int]], window_tokens: int) -> list[tuple[list[int], int]]:
    """Windows, and from which token on they are scored."""
    shared = _shared_prefix(sequences)
    windows = [
        (list(ids[start : start + window_tokens]), max(shared - start, 1))
        for ids in sequences
        for start in range(0, len(ids), window_tokens)
    ]
    windows = [(ids, first) for ids, first in windows if len(ids) > first]
    if not windows:
        raise UsageError("there is no text to measure perplexity on", todo="give at least one text of two tokens")
    return windows


def _shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    if len(sequences) < 2:
        return 0
    ordered = sorted(list(ids) for ids in sequences)
    first, last = ordered[0], ordered[-1]  # what these two share is shared by all between them
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def load_for_evaluation(model: Path, *, device: str = "cpu") -> Any:
    """The transformers model of a folder, AWQ weights dequantized, in fp32 on the CPU and fp16 elsewhere."""
    import torch
    import transformers

    facts = read_config(model)
    network_class = getattr(transformers, facts.architecture, None)
    if network_class is None:
        raise UsageError(
            f"{model} is a {facts.architecture}, which needs its own Python code; lab3 does not run it",
            todo="convert it to the Llama layout first",
        )
    dtype = torch.float32 if device == "cpu" else torch.float16
    if facts.quantization is None:
        return network_class.from_pretrained(model, dtype=dtype).to(device).eval()
    config = network_class.config_class.from_pretrained(model)
    del config.quantization_config
    dense = {name: tensor.to(dtype) for name, tensor in dense_state(model, device=device).items()}
    with torch.device(device):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    report = network.load_state_dict(dense, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if strangers := [*(set(report.missing_keys) - tied), *report.unexpected_keys]:
        raise UsageError(f"{model} does not hold the weights of its config: {sorted(strangers)[:3]}")
    return network.eval()


def dense_state(model: Path, *, device: str = "cpu") -> dict[str, Any]:
    """The weights of an AWQ folder by name, every `X.qweight` with its scales and zeros turned into an `X.weight`."""
    from safetensors.torch import load_file

    group_size = int((read_config(model).quantization or {})["group_size"])
    packed = {name: tensor for file in weight_files(model) for name, tensor in load_file(file, device).items()}
    dense = {}
    for name, tensor in packed.items():
        stem, _, kind = name.rpartition(".")
        if kind == "qweight":
            dense[f"{stem}.weight"] = dequantize_awq(
                tensor, packed[f"{stem}.scales"], packed[f"{stem}.qzeros"], group_size=group_size
            )
        elif kind not in ("scales", "qzeros"):
            dense[name] = tensor
    return dense


def dequantize_awq(qweight: Any, scales: Any, qzeros: Any, *, group_size: int) -> Any:
    """The fp32 weight `[N, K]` of an AWQ layer: W[n, k] = (q[k, n] - z[k // group_size, n]) * s[k // group_size, n].

    qweight int32 `[K, N/8]`, scales fp16 `[K/g, N]`, qzeros int32 `[K/g, N/8]`; eight outputs share an int32.
    """
    zeros = unpack_awq(qzeros).repeat_interleave(group_size, dim=0)
    steps = scales.float().repeat_interleave(group_size, dim=0)
    return ((unpack_awq(qweight) - zeros) * steps).t().contiguous()


def unpack_awq(packed: Any) -> Any:
    """int32 `[rows, N/8]` to the int32 values 0..15 `[rows, N]`, in the order of the outputs."""
    import torch

    shifts = torch.tensor([4 * nibble for nibble in AWQ_NIBBLES], dtype=torch.int32, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 15).reshape(packed.shape[0], -1)
