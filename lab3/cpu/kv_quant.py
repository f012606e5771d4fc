"""LMDeploy's KV-cache format for int8 and int4: asymmetric, one scale and zero for each head and token.

Source: `_quant_int8` and `_quant_int4` in lmdeploy/pytorch/kernels/cuda/fill_kv_cache.py, 0.18.
    scale = (max - min) / (2**bits - 1);  zero = -min / scale;  q = trunc(x / scale + zero + 0.5)
    x' = (q - zero) * scale
int4 packs two halves of a head: channel i of the first half in the low nibble, i of the second half in the high one.
All of it is computed in fp32; scale and zero are rounded to the model's type when they are stored.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(values: Tensor, *, bits: int, stored_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize `values` [..., head_dim] over the last axis.

    Returns:
        packed: uint8 [..., head_dim] for 8 bits, [..., head_dim / 2] for 4.
        scales_zeros: `stored_dtype` [..., 2], the scale and the zero.
    """
    values = values.float()
    low, high = values.aminmax(dim=-1, keepdim=True)
    scale = (high - low).div_(2**bits - 1)
    # A constant head has no scale: the kernel divides by zero there. Scale 1 stores it exactly.
    scale.masked_fill_(scale == 0, 1.0)
    zero = low.neg().div_(scale)
    q = (values / scale).add_(zero).add_(0.5).clamp_(0, 2**bits - 1 + 0.5).to(torch.uint8)
    if bits == 4:
        first, second = q.chunk(2, dim=-1)
        q = torch.add(first, second, alpha=16)
    return q, torch.cat([scale, zero], dim=-1).to(stored_dtype)


def dequantize(packed: Tensor, scales_zeros: Tensor, *, bits: int, dtype: torch.dtype) -> Tensor:
    """Values [..., head_dim] in `dtype` from what `quantize` made; computed in fp32."""
    if bits == 4:
        values = packed.new_empty((*packed.shape[:-1], 2 * packed.size(-1)), dtype=torch.float32)
        first, second = values.chunk(2, dim=-1)
        first.copy_(packed & 0xF)
        second.copy_(packed >> 4)
    else:
        values = packed.float()
    scale, zero = scales_zeros.float().split(1, dim=-1)
    return values.sub_(zero).mul_(scale).to(dtype)
