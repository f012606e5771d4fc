"""Sampling with a seed on the CPU: the draw of LMDeploy's Triton kernel, so that a seed means the same on a GPU."""

from __future__ import annotations

import numpy as np
import torch
from lmdeploy.pytorch.backends.multinomial_sampling import MultinomialSamplingImpl
from torch import Tensor

_MASK = np.uint64(0xFFFFFFFF)


def uniform(seeds: Tensor, offsets: Tensor) -> Tensor:
    """One number in [0, 1) for each pair of `seeds` and `offsets` [B] (int64): Triton's `tl.rand(seed, offset)`.

    Philox4x32-10, counter (offset, 0, 0, 0), key the seed's low and high half; Salmon et al., "Parallel random numbers:
    as easy as 1, 2, 3", SC'11; as in triton/language/random.py.
    """
    seed = seeds.numpy().astype(np.uint64)
    key_a, key_b = seed & _MASK, seed >> np.uint64(32)
    c0 = offsets.numpy().astype(np.uint64) & _MASK
    c1 = c2 = c3 = np.zeros_like(c0)
    for _ in range(10):
        low, high = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (high >> np.uint64(32)) ^ c1 ^ key_a, high & _MASK
        c2, c3 = (low >> np.uint64(32)) ^ c3 ^ key_b, low & _MASK
        key_a, key_b = (key_a + np.uint64(0x9E3779B9)) & _MASK, (key_b + np.uint64(0xBB67AE85)) & _MASK
    signed = c0.astype(np.uint32).view(np.int32)
    positive = np.where(signed < 0, -signed - 1, signed)
    return torch.from_numpy(positive.astype(np.float32) * np.float32(4.6566127342e-10))


class CpuMultinomialSampling(MultinomialSamplingImpl):  # type: ignore[misc]
    """Draw one token for each sequence from probabilities sorted in descending order."""

    def forward(self, scores: Tensor, seeds: Tensor, offsets: Tensor, indices: Tensor | None = None) -> Tensor:
        """scores [B, n] probabilities, seeds and offsets [B], indices [B, n] token ids → token ids [B]."""
        draw = uniform(seeds, offsets)[:, None]
        position = (scores.float().cumsum(dim=1) < draw).sum(dim=1)
        # Rounding may leave the sum below the draw: then the kernel, too, takes the most likely token.
        position = torch.where(position < scores.size(1), position, torch.zeros_like(position))[:, None]
        return (position if indices is None else indices.gather(1, position)).flatten()
