"""What LMDeploy's AWQ, written for a GPU, needs to be right on a CPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def cpu_precision(dtype: str) -> Iterator[None]:
    """Calibrate with bf16 products and save in 16 bits: torch's fp16 on a CPU is 10x slower than fp32.

    The model is loaded in fp32 (`lab3.perplexity.load_for_evaluation`). LMDeploy names its quantizer as a global of a
    module; it is put back afterwards.
    """
    import torch

    awq: Any = importlib.import_module("lmdeploy.lite.apis.auto_awq")
    quantize = awq.quant_weights

    def quantize_and_narrow(network: Any, *args: Any, **options: Any) -> Any:
        skipped = quantize(network, *args, **options)
        network.to(torch.bfloat16 if dtype == "bfloat16" else torch.float16)
        return skipped

    with mock.patch.object(awq, "quant_weights", quantize_and_narrow), torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def search_restores_weights() -> Iterator[None]:
    """Give LMDeploy's scale search a real copy of the weights that it tries scales on.

    It keeps `v.cpu()` of each tensor to restore it from (auto_scale_block, 0.18), which on a CPU is the tensor itself:
    every try would spoil the weights for the next (perplexity 189,020 instead of 11 on the embedded model).
    """
    from torch import nn

    search: Any = importlib.import_module("lmdeploy.lite.quantization.calibration")
    original = nn.Module.state_dict
    auto_scale = search.auto_scale_block

    def copied(self: Any, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in original(self, *args, **kwargs).items()}

    def auto_scale_block(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(nn.Module, "state_dict", copied):
            return auto_scale(*args, **kwargs)

    with mock.patch.object(search, "auto_scale_block", auto_scale_block):
        yield
