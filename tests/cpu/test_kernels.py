"""What stands between the matrix products, in one pass each: the numbers are those that torch makes in many."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lab3.cpu import kv_quant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kernels")]  # what one process compiled the others need not

TYPES = (torch.float32, torch.float16, torch.bfloat16)
# One rounding to the type: half a unit in its last place, and fp32's own sums in another order.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.01 * 2**-11, torch.bfloat16: 1.01 * 2**-8}


@pytest.fixture(params=TYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


def close(ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item() * 1e-3)


class TestNumbers:
    """16-bit numbers are read and rounded as torch does it."""

    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    def test_every_kind_of_number_is_rounded_as_torch_rounds(self, dtype: torch.dtype):
        import numba

        from lab3.cpu.compiled import load, store, stored

        @numba.njit
        def convert(x, out, back):
            for i in range(len(x)):
                out[i] = store(out, x[i])
                back[i] = load(out[i])

        halfway = (
            1 + torch.arange(64) * 2.0**-9
        )  # every second one lies between two numbers of bf16, as do fp16's below
        finer = 1 + torch.arange(64) * 2.0**-12
        special = torch.tensor([0.0, -0.0, 65504, 65519, 65520, 3.4e38, 1e-7, 6e-8, 2e-8, 1e-40, torch.inf, -torch.inf])
        x = torch.cat(
            [halfway, -finer, special, numbers(500, dtype=torch.float32, spread=1e3), torch.tensor([torch.nan])]
        )
        out, back = torch.empty(len(x), dtype=dtype), torch.empty(len(x))
        convert(x.numpy(), stored(out), back.numpy())
        torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(back, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


class TestBetweenTheProducts:
    """RMSNorm, SwiGLU's middle and the rotary embedding, as LMDeploy calls them."""

    def test_the_norm_is_that_of_the_sum_which_is_kept(self, dtype: torch.dtype):
        from lab3.cpu.between import CpuRMSNorm

        x, residual, weight = (
            numbers(*s, dtype=dtype, seed=i) for i, s in enumerate(((1, 5, 576), (1, 5, 576), (576,)))
        )
        out, total = CpuRMSNorm(1e-5).forward(x, weight, residual)
        assert torch.equal(total, x + residual)
        exact = F.rms_norm(total.double(), (576,), weight.double(), 1e-5)
        close(out, exact, dtype)
        close(CpuRMSNorm(1e-5).forward(x, weight), F.rms_norm(x.double(), (576,), weight.double(), 1e-5), dtype)

    def test_a_row_of_zeros_has_a_norm(self, dtype: torch.dtype):
        from lab3.cpu.between import CpuRMSNorm

        assert not CpuRMSNorm(1e-6).forward(torch.zeros(2, 64, dtype=dtype), torch.ones(64, dtype=dtype)).any()

    def test_silu_is_multiplied_from_one_end_of_the_numbers_to_the_other(self, dtype: torch.dtype):
        from lab3.cpu.between import CpuSiluAndMul

        gate, up = numbers(1, 3, 1000, dtype=dtype, spread=40), numbers(1, 3, 1000, dtype=dtype, seed=1)
        gate[0, 0, :4] = torch.tensor([-1e4, 1e4, 0, -90])
        out = CpuSiluAndMul().forward(torch.cat([gate, up], dim=-1))
        assert out.shape == (1, 3, 1000)
        close(out, F.silu(gate.double()) * up.double(), dtype)

    def test_what_several_cores_divide_is_what_one_makes_of_each_row(self):
        from lab3.cpu.between import CpuSiluAndMul

        halves = numbers(700, 2 * 1536, dtype=torch.float16)
        alone = torch.cat([CpuSiluAndMul().forward(row) for row in halves.split(1)])
        assert torch.equal(CpuSiluAndMul().forward(halves), alone)

    @pytest.mark.parametrize("inplace", [True, False])
    def test_the_halves_of_a_head_are_turned_into_each_other(self, dtype: torch.dtype, inplace: bool):
        from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl

        from lab3.cpu.between import CpuApplyRotaryEmb

        together = numbers(7, 15, 64, dtype=dtype)  # as they come from the product that makes all three
        query, key, value = together.split([9, 3, 3], dim=1)
        # A model's are the same in both halves; here no two are, so that none is taken for another.
        angle = torch.arange(7)[:, None] * 10000.0 ** (-torch.arange(64) / 64)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        before = [each.clone() for each in (query, key, value)]
        exact = DefaultApplyRotaryEmbImpl().forward(
            before[0].double(), before[1].double(), cos.double(), sin.double(), inplace=False
        )
        turned = CpuApplyRotaryEmb().forward(query, key, cos, sin, inplace=inplace)
        for ours, expected in zip(turned, exact, strict=True):
            # A difference of two products may be near nothing: the products' size is what it is exact to.
            torch.testing.assert_close(ours.double(), expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype] / 50)
        assert torch.equal(query, turned[0]) == inplace
        assert torch.equal(value, before[2])

    def test_complex_pairs_are_turned_by_lmdeploy_s_own_operator(self):
        from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl

        from lab3.cpu.between import CpuApplyRotaryEmb

        query, key, cos, sin = (numbers(4, 2, 64, dtype=torch.float32, seed=i) for i in range(4))
        arguments = query, key, cos[:, 0], sin[:, 0]
        expected = DefaultApplyRotaryEmbImpl().forward(*arguments, inplace=False, complex_mode=True)
        ours = CpuApplyRotaryEmb().forward(*arguments, inplace=False, complex_mode=True)
        assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))

    def test_exp_is_exact_to_two_units_in_the_last_place(self):
        from lab3.cpu.compiled import exp

        x = torch.linspace(-86, 88, 3001)
        ours = torch.tensor([exp(value) for value in x.numpy()], dtype=torch.float64)
        assert ((ours / x.double().exp() - 1).abs() < 2 * 2**-23).all()
        assert exp(x.numpy()[0] * 100) < 1e-37
        assert exp(x.numpy()[-1] * 100) > 1e38


class Cache:
    """A paged cache of one sequence, whose blocks lie in no order, written and read by the kernels."""

    def __init__(
        self, tokens: int, *, bits: int, dtype: torch.dtype, heads: int = 3, d: int = 64, seed: int = 0
    ) -> None:
        from lab3.cpu import kernels
        from lab3.cpu.compiled import stored

        self.stored = stored
        self.tokens, self.bits, self.kernels = tokens, bits, kernels
        self.blocks = torch.tensor([7, 2, 5, 1, 9, 0])
        width, kind = (d, dtype) if bits == 16 else (d * bits // 8, torch.uint8)
        self.cache = torch.zeros(10, 16, heads, width, dtype=kind)
        self.scales = torch.zeros(10, 16, heads, 2, dtype=dtype)
        self.new = numbers(tokens, heads, d, dtype=dtype, seed=seed)
        place = torch.arange(tokens)
        places = self.blocks[place // 16].numpy(), (place % 16).numpy()
        arrays = stored(self.cache), stored(self.scales)
        kernels.write(stored(self.new), *places, arrays[0], arrays[bits < 16], 0, heads)

    @property
    def arrays(self) -> tuple[Any, Any]:
        return self.stored(self.cache), self.stored(self.scales if self.bits < 16 else self.cache)

    def written(self, of: torch.Tensor) -> torch.Tensor:
        return of[self.blocks].flatten(0, 1)[: self.tokens]

    def read(self) -> torch.Tensor:
        d = self.new.size(2)
        return self.spread(across=False)[:, : self.tokens, :d].transpose(0, 1)

    def spread(self, *, across: bool) -> torch.Tensor:
        """As `prompts.attend` takes it: keys lie across."""
        from lab3.cpu import prompts

        _, heads, d = self.new.shape
        tokens, width = prompts.padded(self.tokens), prompts.padded(d)
        out = torch.full((heads, width, tokens) if across else (heads, tokens, width), torch.nan)
        prompts.read(*self.arrays, self.blocks.numpy(), self.tokens, d, across, 0, heads, out.numpy())
        return out


def prompted(query: torch.Tensor, keys: Cache, values: Cache, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    """What `prompts.attend` gives for the last tokens of a sequence, its pieces cut at `cuts`."""
    from lab3.cpu import prompts

    new, heads, _ = query.shape
    out = torch.full_like(query, torch.nan)
    arrays = keys.spread(across=True).numpy(), values.spread(across=False).numpy()
    ends = [0, *cuts, prompts.pieces(new, heads)]
    for first, last in pairwise(ends):
        prompts.attend(keys.stored(query), *arrays, keys.tokens - new, 0.125, first, last, keys.stored(out))
    return out


class TestTheCache:
    """What is written is what `kv_quant` makes, which LMDeploy's kernel judges in test_kv_format."""

    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize("d", [64, 24, 8, 80])
    def test_the_bytes_are_those_of_the_formula(self, dtype: torch.dtype, bits: int, d: int):
        cache = Cache(50, bits=bits, dtype=dtype, d=d)
        packed, scales_zeros = kv_quant.quantize(cache.new, bits=bits, stored_dtype=dtype)
        assert torch.equal(cache.written(cache.cache), packed)
        assert torch.equal(cache.written(cache.scales), scales_zeros)
        assert not cache.cache[[3, 4, 6, 8]].any(), "a block of nobody was written"
        torch.testing.assert_close(
            cache.read(),
            kv_quant.dequantize(packed, scales_zeros, bits=bits, dtype=torch.float32),
            rtol=1e-6,
            atol=1e-6,
        )

    @pytest.mark.parametrize("bits", [8, 4])
    def test_a_constant_head_is_read_as_it_was(self, bits: int):
        cache = Cache(1, bits=bits, dtype=torch.float32)
        cache.new.fill_(0.75)
        arrays = cache.stored(cache.new), cache.blocks[:1].numpy(), torch.zeros(1, dtype=torch.long).numpy()
        cache.kernels.write(*arrays, *cache.arrays, 0, 3)
        assert torch.equal(cache.read(), cache.new)

    @pytest.mark.parametrize("d", [64, 24])
    def test_a_plain_cache_keeps_what_comes(self, dtype: torch.dtype, d: int):
        cache = Cache(50, bits=16, dtype=dtype, d=d)
        assert torch.equal(cache.written(cache.cache), cache.new)
        assert torch.equal(cache.read(), cache.new.float())

    @pytest.mark.parametrize("bits", [16, 8, 4])
    @pytest.mark.parametrize(("length", "d"), [(1, 64), (16, 64), (17, 64), (81, 64), (81, 80), (18, 24), (7, 128)])
    @pytest.mark.parametrize("group", [3, 6])
    def test_one_token_attends_to_all_before_it(self, dtype: torch.dtype, bits: int, length: int, d: int, group: int):
        from lab3.cpu import kernels
        from lab3.cpu.compiled import stored

        keys, values = (Cache(length, bits=bits, dtype=dtype, d=d, seed=seed) for seed in range(2))
        query, out = numbers(3 * group, d, dtype=torch.float32), torch.empty(3 * group, d, dtype=dtype)
        (k, k_scales), (v, v_scales) = keys.arrays, values.arrays
        blocks = keys.blocks.numpy()
        kernels.attend(query.numpy(), k, v, k_scales, v_scales, blocks, 16, length, 0.125, 0, 3, stored(out))
        exact = F.scaled_dot_product_attention(
            query.double().view(1, 3, group, d),
            keys.read().double().transpose(0, 1)[None],
            values.read().double().transpose(0, 1)[None],
            scale=0.125,
        ).view(3 * group, d)
        torch.testing.assert_close(out.double(), exact, rtol=TOLERANCE[dtype] * 4, atol=TOLERANCE[dtype] * 4)

    @pytest.mark.parametrize("bits", [16, 8, 4])
    @pytest.mark.parametrize(("length", "new", "d"), [(2, 2, 64), (64, 64, 64), (81, 81, 80), (81, 6, 64), (66, 3, 24)])
    def test_a_prompts_tokens_attend_to_all_before_them_and_to_themselves(
        self, dtype: torch.dtype, bits: int, length: int, new: int, d: int
    ):
        keys, values = (Cache(length, bits=bits, dtype=dtype, d=d, seed=seed) for seed in range(2))
        query = numbers(new, 9, d, dtype=dtype)

        def torchs(kind: torch.dtype) -> torch.Tensor:
            seen = (each.to(kind).transpose(0, 1)[None] for each in (query, keys.read(), values.read()))
            mask = torch.ones(new, length, dtype=torch.bool).tril(length - new)
            return F.scaled_dot_product_attention(*seen, attn_mask=mask, scale=0.125, enable_gqa=True)[0].transpose(
                0, 1
            )

        exact = torchs(torch.float64)
        # What fp32 costs here: the products are some hundreds, and e to their differences shows their last bits.
        tolerance = 4 * max(TOLERANCE[dtype], float((torchs(torch.float32) - exact).abs().max()))
        torch.testing.assert_close(prompted(query, keys, values).double(), exact, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 80])
    def test_a_prompts_token_gets_the_same_bits_in_whatever_chunk_it_comes(self, chunk: int):
        keys, values = (Cache(81, bits=4, dtype=torch.float16, seed=seed) for seed in range(2))
        query = numbers(81, 9, 64, dtype=torch.float16)
        assert torch.equal(prompted(query[-chunk:], keys, values), prompted(query, keys, values)[-chunk:])

    def test_a_prompts_attention_can_be_cut_anywhere(self):
        keys, values = (Cache(50, bits=8, dtype=torch.bfloat16, seed=seed) for seed in range(2))
        query = numbers(50, 9, 64, dtype=torch.bfloat16)
        assert torch.equal(prompted(query, keys, values, cuts=(1, 10, 58)), prompted(query, keys, values))

    def test_a_prompts_weights_are_shares_however_large_the_products(self):
        keys, values = (Cache(50, bits=16, dtype=torch.float32) for _ in range(2))
        values.cache.fill_(1.0)
        query = numbers(50, 9, 64, dtype=torch.float32, spread=3000)
        torch.testing.assert_close(prompted(query, keys, values), torch.ones(50, 9, 64))

    def test_weights_of_attention_are_shares_however_large_the_products(self):
        from lab3.cpu import kernels

        keys, values = (Cache(17, bits=16, dtype=torch.float32) for _ in range(2))
        values.cache.fill_(1.0)
        query, out = numbers(9, 64, dtype=torch.float32, spread=300), torch.empty(9, 64)
        (k, _), (v, _) = keys.arrays, values.arrays
        kernels.attend(query.numpy(), k, v, k, v, keys.blocks.numpy(), 16, 17, 1.0, 0, 3, out.numpy())
        assert (query.view(3, 3, 64) @ keys.read().permute(1, 2, 0)).abs().max() > 1000
        torch.testing.assert_close(out, torch.ones(9, 64))


class TestPlainWeights:
    @pytest.mark.parametrize("dtype", TYPES, ids=str)
    @pytest.mark.parametrize("rows", [4, 7, 13])
    def test_a_row_gives_the_same_bits_alone_and_among_others(self, dtype: torch.dtype, rows: int):
        from lab3.cpu.linear import CpuLinear, begin_step

        x, weight = numbers(rows, 580, dtype=dtype), numbers(20_000, 580, dtype=dtype, seed=1, spread=0.1)
        begin_step([1] * rows, is_decoding=True)
        together = CpuLinear().forward(x, weight)
        begin_step([1], is_decoding=True)
        alone = torch.cat([CpuLinear().forward(row, weight) for row in x.split(1)])
        assert torch.equal(together, alone)
        exact = x.double() @ weight.double().t()
        if dtype == torch.float32:  # no rounding of the result hides that sums have another order
            assert (together - exact).abs().max() < 2 * (F.linear(x, weight) - exact).abs().max()
        else:
            close(together, exact, dtype)

    def test_a_row_among_long_sequences_gives_the_bits_that_it_gives_alone(self):
        from lab3.cpu.linear import CpuLinear, begin_step

        x, weight = numbers(41, 576, dtype=torch.float16), numbers(300, 576, dtype=torch.float16, seed=1)
        begin_step([40, 1], is_decoding=False)
        among = CpuLinear().forward(x, weight)[40:]
        begin_step([1], is_decoding=True)
        assert torch.equal(among, CpuLinear().forward(x[40:], weight))

    @pytest.mark.parametrize(
        ("weight", "why"),
        [
            (numbers(8, 32, dtype=torch.float64), "fp32, fp16 or bf16"),
            (numbers(8, 64, dtype=torch.float16)[:, ::2], "in one piece"),
        ],
        ids=["fp64", "every second"],
    )
    def test_a_weight_that_it_cannot_read_is_refused(self, weight: torch.Tensor, why: str):
        from numba.core.errors import TypingError

        from lab3.cpu import products
        from lab3.cpu.compiled import stored

        x, out = numbers(1, 32, dtype=torch.float16), torch.empty(1, 8).half()
        with pytest.raises(TypingError, match=why):
            products.times_plain(stored(x), stored(weight), 0, 8, stored(out))

    def test_what_one_of_the_threads_raises_is_raised(self, monkeypatch: pytest.MonkeyPatch):
        from lab3.cpu import cores

        def compute(first: int, last: int) -> None:
            if first:
                raise ValueError("the second half")
            seen.append((first, last))

        seen: list[tuple[int, int]] = []
        monkeypatch.setattr(cores, "ALL", 2)
        with pytest.raises(ValueError, match="second half"):
            cores.in_parts(7, 2**30, compute)
        assert seen == [(0, 3)]
        cores.in_parts(7, 10, compute)
        assert seen == [(0, 3), (0, 7)], "what is small is not cut"


def run_python(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


_COMPILE = """
import numpy, torch
from lab3.cpu import kernels
x = torch.ones(1, 8)
kernels.rms_norm(x.numpy(), x[0].numpy(), 0.0, x.numpy())
print(sum(kernels.rms_norm.stats.cache_hits.values()), sum(kernels.rms_norm.stats.cache_misses.values()), x.sum())
"""


# With glibc's M_MMAP_THRESHOLD (-3 of <malloc.h>) so low, an array's memory is gone from the process when it is freed.
_ADDRESSES = """
import ctypes
import numpy as np
from lab3.cpu import products, prompts

rows, k, n, groups, bits = 7, 1024, 2 * products.BLOCK, 8, np.float16
one = np.ones((rows, k), bits).view(np.uint16)
codes = np.full((2, k, products.BLOCK // 2), 0x33, np.uint8)
of_groups = (2, groups, products.BLOCK)
scales, zeros = np.ones(of_groups, bits).view(np.uint16), np.full(of_groups, 2, np.uint8)
keys, values = np.ones((1, 64, 64), np.float32), np.ones((1, 64, 64), np.float32)
outs = {name: np.zeros((rows, n), bits) for name in ("16 bits", "4 bits", "4 bits of a prompt")}
outs["attention"] = np.zeros((rows, 3, 64), bits)
into = {name: out.view(np.uint16) for name, out in outs.items()}
query = np.ones((rows, 3, 64), bits).view(np.uint16)

assert ctypes.CDLL(None).mallopt(-3, 256)
products.times_plain(one, np.ones((n, k), bits).view(np.uint16), 0, n, into["16 bits"])
products.times_4_bits(one, codes, scales, zeros, 0, 2, into["4 bits"])
products.prompt_times_4_bits(np.ones((rows, k), np.float32), codes, scales, zeros, 1, 0, 2, into["4 bits of a prompt"])
prompts.attend(query, keys, values, 9, 0.125, 0, prompts.pieces(rows, 3), into["attention"])
print(*(f"{name}: {out.min():g} to {out.max():g}" for name, out in outs.items()), sep="\\n")
"""


class TestMachineCode:
    def test_it_is_kept_for_one_state_of_every_module_that_it_is_made_of(self):
        """numba itself looks at the file of a function, and not at those of the functions and instructions in it."""
        import ast

        from lab3.cpu import compiled

        def makes_code(module: Path) -> bool:
            imports = [each for each in ast.walk(ast.parse(module.read_text())) if isinstance(each, ast.ImportFrom)]
            names = {name.name for each in imports for name in each.names}
            return "compiled" in names or not {"numba", "numba.extending"}.isdisjoint(each.module for each in imports)

        folder = Path(compiled.__file__).parent
        assert {path.stem for path in folder.glob("*.py") if makes_code(path)} == set(compiled._MODULES)

    def test_what_it_works_on_by_address_is_not_freed_before(self):
        """numba frees an array after the last place that names it, whoever still has its address."""
        assert run_python(_ADDRESSES).splitlines() == [
            "16 bits: 1024 to 1024",
            "4 bits: 1024 to 1024",
            "4 bits of a prompt: 1024 to 1024",
            "attention: 1 to 1",
        ]

    def test_it_is_compiled_once_and_kept(self, tmp_path: Path):
        assert run_python(_COMPILE, LAB3_CACHE=str(tmp_path)).split()[:2] == ["0", "1"]
        assert run_python(_COMPILE, LAB3_CACHE=str(tmp_path)).split()[:2] == ["1", "0"]
        assert [folder.name for folder in tmp_path.iterdir()] == ["kernels"]

    def test_where_nothing_can_be_kept_it_is_compiled_each_time(self, tmp_path: Path):
        (tmp_path / "file").touch()
        assert run_python(_COMPILE, LAB3_CACHE=str(tmp_path / "file")).split()[2] == "tensor(8.)"
