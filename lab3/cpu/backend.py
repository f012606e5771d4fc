"""The operators: LMDeploy's plain-torch `DefaultOpsBackend`, with ours for all that a dense decoder consists of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmdeploy.pytorch.backends.activation import SiluAndMulBuildSpec
from lmdeploy.pytorch.backends.apply_rotary_emb import ApplyRotaryEmbBuildSpec
from lmdeploy.pytorch.backends.attention import PagedAttentionBuildSpec
from lmdeploy.pytorch.backends.awq_modules import LinearW4A16BuildSpec
from lmdeploy.pytorch.backends.default.op_backend import DefaultOpsBackend
from lmdeploy.pytorch.backends.linear import LinearBuildSpec
from lmdeploy.pytorch.backends.multinomial_sampling import MultinomialSamplingBuildSpec
from lmdeploy.pytorch.backends.norm import RMSNormBuildSpec
from torch.overrides import TorchFunctionMode

from lab3.cpu import cores, graph
from lab3.cpu.attention import CpuAttentionMetadata, build_attention, build_metadata
from lab3.cpu.between import CpuApplyRotaryEmb, CpuRMSNorm, CpuSiluAndMul
from lab3.cpu.linear import CpuLinear, begin_step, build_w4a16
from lab3.cpu.pages import move_to_huge_pages
from lab3.cpu.sampling import CpuMultinomialSampling


class _NoRandomWeights(TorchFunctionMode):
    """`torch.nn.init` leaves memory as it is, for the checkpoint's weights come into it next: the 28 million random
    numbers of the embedded model's embedding take a third of a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class CpuOpsBackend(DefaultOpsBackend):  # type: ignore[misc]
    """LMDeploy's operator backend for device type `cpu`."""

    @staticmethod
    def get_name() -> str:
        return "cpu"

    @classmethod
    def build_op(cls, spec: Any, *, enable_deterministic: bool = False) -> Any:
        if isinstance(spec, PagedAttentionBuildSpec):
            return build_attention(spec)
        if isinstance(spec, LinearW4A16BuildSpec):
            return build_w4a16(spec)
        if isinstance(spec, LinearBuildSpec):
            return CpuLinear()
        if isinstance(spec, RMSNormBuildSpec):
            return CpuRMSNorm(spec.eps)
        if isinstance(spec, SiluAndMulBuildSpec):
            return CpuSiluAndMul()
        if isinstance(spec, ApplyRotaryEmbBuildSpec):
            return CpuApplyRotaryEmb()
        if isinstance(spec, MultinomialSamplingBuildSpec):
            return CpuMultinomialSampling()
        return super().build_op(spec, enable_deterministic=enable_deterministic)

    @staticmethod
    def get_attention_metadata_cls() -> type[CpuAttentionMetadata]:
        return CpuAttentionMetadata

    @classmethod
    def update_step_context(cls, step_context: Any) -> Any:
        metadata = build_metadata(step_context)
        cores.take(0)  # what is worth more says so itself
        begin_step(metadata.query_lengths, is_decoding=metadata.is_decoding)
        graph.begin(metadata)
        step_context.attn_metadata = metadata
        return step_context

    @staticmethod
    @contextmanager
    def model_build_context(_: Any) -> Iterator[None]:
        with _NoRandomWeights():
            yield

    @staticmethod
    def build_graph_runner(model: Any, **configs: Any) -> graph.CpuGraphRunner:
        move_to_huge_pages(model)  # LMDeploy has loaded it by now
        return graph.CpuGraphRunner(model, **configs)

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def ccl_backend() -> str:
        return "gloo"
