"""Run by test_kv_format.py under TRITON_INTERPRET=1: LMDeploy's own kernels on CPU tensors, results to a file."""

import sys

import torch
import triton
import triton.language as tl
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.kernels.cuda.fill_kv_cache import fill_kv_cache
from lmdeploy.pytorch.kernels.cuda.multinomial_sampling import _multinomial_sampling_kernel

from lab3.garbage import collect_rarely

collect_rarely()
out = {}
generator = torch.Generator().manual_seed(0)
TOKENS, HEADS, DIM, BLOCK = 40, 3, 64, 16
lengths = torch.tensor([TOKENS])
blocks = torch.arange(3)[None]

for dtype in (torch.float16, torch.bfloat16, torch.float32):
    for bits, policy in ((8, QuantPolicy.INT8), (4, QuantPolicy.INT4)):
        states = (torch.randn(TOKENS, HEADS, DIM, generator=generator) * 3 + 1).to(dtype)
        cache = torch.zeros(3, BLOCK, HEADS, DIM * bits // 8, dtype=torch.uint8)
        scales_zeros = torch.zeros(3, BLOCK, HEADS, 2, dtype=dtype)
        fill_kv_cache(
            states, states.clone(), cache, torch.zeros_like(cache), torch.tensor([0]), lengths, lengths, TOKENS, blocks,
            scales_zeros, torch.zeros_like(scales_zeros), quant_policy=policy,
        )  # fmt: skip
        name = f"{str(dtype).removeprefix('torch.')}_{bits}"
        out[f"{name}_states"] = states
        out[f"{name}_packed"] = cache.flatten(0, 1)[:TOKENS].clone()
        out[f"{name}_scales_zeros"] = scales_zeros.flatten(0, 1)[:TOKENS].clone()


@triton.jit
def uniform_kernel(seeds, offsets, result):
    i = tl.program_id(0)
    tl.store(result + i, tl.rand(tl.load(seeds + i), tl.load(offsets + i).to(tl.int32)))


N = 32
seeds = torch.randint(0, 2**62, (N,), generator=generator)
offsets = torch.randint(0, 5000, (N,), generator=generator)
result = torch.zeros(N)
uniform_kernel[(N,)](seeds, offsets, result)
probabilities = torch.randn(N, 300, generator=generator).mul(2).softmax(1).sort(1, descending=True).values
indices = torch.stack([torch.randperm(300, generator=generator) for _ in range(N)])
tokens = torch.zeros(N, dtype=torch.int64)
_multinomial_sampling_kernel[(N,)](
    probabilities, seeds, offsets, indices, tokens, *probabilities.stride(), *indices.stride(), 300, BLOCK_N=128
)
out |= {
    "seeds": seeds,
    "offsets": offsets,
    "uniform": result,
    "probabilities": probabilities,
    "indices": indices,
    "tokens": tokens,
}
torch.save(out, sys.argv[1])
