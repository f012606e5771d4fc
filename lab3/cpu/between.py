"""What a decoder's layer does between its matrix products, each in one pass (`lab3.cpu.kernels`)."""

from __future__ import annotations

import torch
from lmdeploy.pytorch.backends.activation import SiluAndMulImpl
from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl
from lmdeploy.pytorch.backends.norm import RMSNormImpl
from torch import Tensor

from lab3.cpu import cores, kernels
from lab3.cpu.compiled import stored
from lab3.cpu.graph import decoding
from lab3.cpu.replay import ADD_NORM, NORM, ROTATE, SILU

_SILU = 16  # multiplications that take as long as silu of a number


class CpuRMSNorm(RMSNormImpl):  # type: ignore[misc]
    """RMSNorm (Zhang and Sennrich, 2019), computed in fp32 and rounded once."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x [..., n] → its norm; with a residual, that of their sum, and the sum."""
        rows = x.reshape(-1, x.size(-1))
        out = torch.empty_like(rows)
        n = x.size(-1)
        if residual is None:
            if step := decoding(out, rows, weight):
                reads = {"x": rows, "weight": weight}
                step.do(NORM, tasks=len(rows), reads=reads, writes={"out": out}, n=n, number=self.eps)
            else:
                kernels.rms_norm(stored(rows), stored(weight), self.eps, stored(out))
            return out.view(x.shape)
        total = torch.empty_like(rows)
        before = residual.reshape(rows.shape)
        if step := decoding(out, rows, before, weight):
            reads, writes = {"x": rows, "second": before, "weight": weight}, {"total": total, "out": out}
            step.do(ADD_NORM, tasks=len(rows), reads=reads, writes=writes, n=n, number=self.eps)
        else:
            kernels.add_rms_norm(stored(rows), stored(before), stored(weight), self.eps, stored(total), stored(out))
        return out.view(x.shape), total.view(x.shape)


class CpuSiluAndMul(SiluAndMulImpl):  # type: ignore[misc]
    """SwiGLU's middle: silu(gate) * up."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., 2 n], the gate before the other → [..., n]."""
        rows = x.reshape(-1, x.size(-1))
        out = rows.new_empty(len(rows), x.size(-1) // 2)
        if step := decoding(rows):
            step.do(SILU, tasks=len(rows), reads={"x": rows}, writes={"out": out}, n=out.size(1))
        else:
            halves, middle = stored(rows), stored(out)
            cores.in_parts(
                len(out),
                _SILU * out.numel(),
                lambda first, last: kernels.silu_and_mul(halves[first:last], middle[first:last]),
            )
        return out.view(*x.shape[:-1], -1)


class CpuApplyRotaryEmb(DefaultApplyRotaryEmbImpl):  # type: ignore[misc]
    """Rotary position embedding (RoPE) of queries and keys; complex pairs are left to LMDeploy's own operator."""

    def forward(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, inplace: bool = True, complex_mode: bool = False
    ) -> tuple[Tensor, Tensor]:
        """query and key [tokens, heads, d], cos and sin [tokens, d] → both turned."""
        if complex_mode or query.dim() != 3 or cos.shape != (len(query), query.size(-1)):
            return super().forward(query, key, cos, sin, inplace, complex_mode)  # type: ignore[no-any-return]
        if not inplace:
            query, key = query.clone(), key.clone()
        for states in (query, key):
            if step := decoding(states, cos, sin):
                _, heads, d = states.shape
                reads = {"x": states, "second": cos, "third": sin}
                step.do(ROTATE, tasks=len(states), reads=reads, heads=heads, d=d, step=states.stride(0))
            else:
                kernels.rotate(stored(states), stored(cos), stored(sin))
        return query, key
