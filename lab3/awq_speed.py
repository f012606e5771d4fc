"""LMDeploy's AWQ in less time: its own functions on the same numbers, without what costs time and changes nothing.

Where the time of LMDeploy 0.18 goes for 1.8 billion weights and 128 x 2048 tokens (bench/quantize_gpu.py measures it):

* it packs a layer column by column, millions of operations of some microseconds each: `packed_at_once`;
* it takes five statistics of the inputs and outputs of each layer and reads each back from the GPU, of which AWQ
  without the scale search uses one, the largest absolute input: `only_what_is_used`;
* it moves each layer to the GPU and back three times, and empties torch's cache each time, so that a model larger than
  the GPU can be quantized: `resident`, for a model that fits.

All are undone when the context ends, and refuse another LMDeploy than they were written for.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from lab3.errors import InfraError
from lab3.models import model_tensors, read_config
from lab3.perplexity import AWQ_NIBBLES

if TYPE_CHECKING:
    from torch import Tensor

_PER_INT32 = 8
# Of a GPU's free memory; the rest is for what torch's allocator cannot use.
_USABLE = 0.9


def weights_fit(model: Path, *, tokens: int, batch_bytes: int, free_bytes: int) -> bool:
    """Whether `model` can stay on a GPU with `free_bytes` while `tokens` tokens calibrate it.

    There are its weights in 16 bits, and with them first the hidden states of all tokens, before and after a layer and
    while they are put together ([tokens, hidden], 16 bits, three times), and what a layer at work takes, `batch_bytes`;
    later the packed weights, which LMDeploy makes of all layers before it lets go of any: under 5 bits each.
    """
    weights = sum(math.prod(tensor.shape) for tensor in model_tensors(model))
    states = 3 * 2 * tokens * read_config(model).hidden_size
    return 2 * weights + max(states + batch_bytes, weights * 5 // 8) <= _USABLE * free_bytes


@contextmanager
def packed_at_once() -> Iterator[None]:
    """`WeightOnlyQLinear.from_linear` packs all columns of a layer in eight operations; the bits are the same.

    Raises InfraError when LMDeploy's function has other arguments than 0.18's.
    """
    layer_class = importlib.import_module("lmdeploy.lite.quantization.modules").WeightOnlyQLinear
    original = layer_class.from_linear
    _expect(original, ["linear", "quantizer", "awq_layout", "qparams"])

    def from_linear(cls: Any, linear: Any, quantizer: Any, awq_layout: bool = True, qparams: Any = None) -> Any:
        if not awq_layout or qparams is None or qparams.zero_points is None:
            return original(linear, quantizer, awq_layout, qparams)
        biased = linear.bias is not None
        made = cls(linear.in_features, linear.out_features, biased, quantizer.bits, False, quantizer.group_size)
        made.bias = linear.bias
        made.qweight = pack_awq(linear.weight.t())
        made.scales = qparams.scales.squeeze(-1).t().contiguous()
        made.qzeros = pack_awq(qparams.zero_points.squeeze(-1).t())
        return made.to("cpu")

    with mock.patch.object(layer_class, "from_linear", classmethod(from_linear)):
        yield


def pack_awq(values: Tensor) -> Tensor:
    """Values 0..15 `[rows, N]` to int32 `[rows, N/8]`, the columns of an int32 in AWQ's order."""
    import torch

    columns = values.to(torch.int32).reshape(values.shape[0], -1, _PER_INT32)
    packed = torch.zeros(columns.shape[:2], dtype=torch.int32, device=values.device)
    for column, nibble in enumerate(AWQ_NIBBLES):
        packed |= columns[:, :, column] << (4 * nibble)
    return packed


@contextmanager
def only_what_is_used() -> Iterator[None]:
    """LMDeploy's calibration takes the largest absolute input of each layer, where the layer is, and nothing else.

    For AWQ without the scale search, which reads nothing else. LMDeploy looks for a NaN in each input; here a NaN stays
    in the maximum and is found at the end.

    Raises InfraError when LMDeploy's functions have other arguments than 0.18's.
    """
    context = importlib.import_module("lmdeploy.lite.quantization.calibration").CalibrationContext
    observer = importlib.import_module("lmdeploy.lite.quantization.activation").ActivationObserver
    _expect(observer.observe, ["self", "x", "save_input"])
    _expect(context._insert_output_observers, ["self"])
    _expect(context.collect_inputs_stats, ["self"])
    collect = context.collect_inputs_stats

    def observe(self: Any, x: Tensor, save_input: bool = False) -> None:
        import torch

        assert x.size(-1) == self.dim
        if x.numel():
            least, most = torch.aminmax(x.detach().reshape(-1, self.dim), dim=0)
            self.absmax_val = torch.maximum(self.absmax_val.to(x.device), torch.maximum(most, -least))

    def collect_inputs_stats(self: Any) -> Any:
        found = collect(self)
        found["absmax"] = {name: value.cpu() for name, value in found["absmax"].items()}
        assert not any(value.isnan().any() for value in found["absmax"].values()), "an activation is NaN"
        return found

    with (
        mock.patch.object(observer, "observe", observe),
        mock.patch.object(context, "_insert_output_observers", return_value=None),
        mock.patch.object(context, "collect_inputs_stats", collect_inputs_stats),
    ):
        yield


@contextmanager
def resident() -> Iterator[None]:
    """A module on the GPU stays there when LMDeploy puts it aside, and torch keeps the memory that it has."""
    import torch

    to: Callable[..., Any] = torch.nn.Module.to

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self if args == ("cpu",) and not kwargs else to(self, *args, **kwargs)

    with mock.patch.object(torch.nn.Module, "to", stay), mock.patch.object(torch.cuda, "empty_cache"):
        yield


@contextmanager
def loaded_already(network: Any) -> Iterator[None]:
    """LMDeploy's AWQ quantizes `network` instead of loading the folder that it is given."""
    calibrate: Any = importlib.import_module("lmdeploy.lite.apis.calibrate")

    def load(path: str, **_: Any) -> Any:
        network.config.use_cache = False
        return network

    with mock.patch.object(calibrate, "load_hf_from_pretrained", load):
        yield


def _expect(function: Callable[..., Any], known: Sequence[str]) -> None:
    if list(inspect.signature(function).parameters) != list(known):
        raise InfraError(
            f"LMDeploy's {function.__qualname__} is not the one that lab3 knows",
            why="lab3 was written for LMDeploy 0.18",
            todo="install the LMDeploy that lab3 asks for: uv pip install 'lmdeploy>=0.18,<0.19'",
        )
