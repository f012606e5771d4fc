"""Decoding steps without Python between the operators: recorded once for a number of requests, then replayed.

What a CUDA graph is on a GPU. Each operator of a decoding step is an entry of a program for `lab3.cpu.replay`. The
first step of a batch size keeps what its operators had run one by one; the second runs both ways, and only when they
agree in every bit are later ones replayed, in one call. So a model whose step holds anything else than these operators
is computed as it always was.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.backends.graph_runner import GraphRunner
from torch import Tensor

from lab3.cpu import cores
from lab3.cpu.compiled import stored
from lab3.cpu.replay import COUNTERS, NORM, OPERATOR, ROTATE, replay

_MOST_SEQUENCES = 64  # of all recordings together: 0.6 MiB each for a model of 135 million parameters
_HALVES = (torch.float16, torch.bfloat16)
_here = threading.local()


class Decoding:
    """A decoding step: runs its operators, and records them where that was asked for.

    `meta` is the step's `lab3.cpu.attention.CpuAttentionMetadata`.
    """

    def __init__(self, meta: Any) -> None:
        lengths, blocks = np.array(meta.kv_lengths, np.int64), np.ascontiguousarray(meta.blocks)
        self._sequences = meta.fill_block, meta.fill_offset, lengths, blocks
        self._quantized = bool(meta.quant_policy)
        self.recording: Recording | None = None

    def do(
        self,
        kind: int,
        *,
        tasks: int,
        reads: dict[str, Tensor],
        writes: dict[str, Tensor] | None = None,
        **facts: float,
    ) -> None:
        """An operator of `kind` on the tensors that it reads and writes, by their names in `OPERATOR`, with its sizes.

        What it changes in place is read.
        """
        writes = writes or {}
        operator = np.zeros(1, OPERATOR)
        operator["kind"], operator["tasks"] = kind, tasks
        for name, tensor in (*reads.items(), *writes.items()):
            operator[name] = tensor.data_ptr()
        for name, fact in facts.items():
            operator[name] = fact
        self.run(operator, reads["x"].dtype)
        if self.recording:
            self.recording.add(operator, reads, writes)

    def run(self, program: Any, dtype: torch.dtype) -> None:
        """All operators of `program`, whose activations are of `dtype`."""
        like = stored(torch.empty(1, dtype=dtype))
        cache_like = np.empty(1, np.uint8) if self._quantized else like
        counters = np.zeros((len(program), COUNTERS), np.int64)
        step = program, like, cache_like, *self._sequences, counters
        if len(program) == 1:
            replay(*step)
        else:
            cores.together(lambda: replay(*step))


def begin(meta: Any) -> None:
    """From now on this thread computes the step of `meta`."""
    _here.step = Decoding(meta) if meta.is_decoding else None


def decoding(x: Tensor, *others: Tensor) -> Decoding | None:
    """The step that this thread computes, if it is a decoding one and `replay` can read these tensors: 16 bits, all of
    one type, each row's numbers together."""
    step: Decoding | None = getattr(_here, "step", None)
    if step is None or x.dtype not in _HALVES:
        return None
    return step if all(each.dtype == x.dtype and _together(each) for each in (x, *others)) else None


def _together(tensor: Tensor) -> bool:
    """Whether a row of `tensor`, of whatever axes, lies in one piece; rows may lie apart."""
    return tensor[0].is_contiguous() if tensor.dim() > 1 and len(tensor) else tensor.is_contiguous()


class Recording:
    """The operators of one step, with the memory that they read and write."""

    def __init__(self) -> None:
        self.operators: list[Any] = []
        self.kept: list[Tensor] = []
        self.inputs: dict[int, Tensor] = {}  # by address: what no operator made
        self._made: set[int] = set()

    def add(self, operator: Any, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
        """An operator that has run."""
        for tensor in reads.values():
            if tensor.data_ptr() not in self._made:
                self.inputs.setdefault(tensor.data_ptr(), tensor)
        self._made.update(tensor.data_ptr() for tensor in writes.values())
        self.kept += (*reads.values(), *writes.values())
        self.operators.append(operator)

    def first(self, kind: int, name: str) -> int:
        """The address `name` of the first operator of `kind`, 0 if there is none."""
        return next((int(each[name][0]) for each in self.operators if each["kind"] == kind), 0)


class CpuGraphRunner(GraphRunner):  # type: ignore[misc]
    """Runs the model, decoding steps from their recordings where there are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # By the number of sequences, the longest unused first; None: cannot be replayed.
        self._graphs: dict[int, _Graph | None] = {}

    def __call__(self, **inputs: Any) -> Any:
        """What the model returns for `inputs`, those of its `forward`."""
        step = getattr(_here, "step", None)
        try:
            return self.model(**inputs) if step is None else self._decode(step, inputs)
        finally:
            _here.step = None  # the output layer, which is asked for then, stands alone

    def _decode(self, step: Decoding, inputs: dict[str, Any]) -> Any:
        sequences = len(inputs["attn_metadata"].query_lengths)
        if sequences not in self._graphs:
            out, self._graphs[sequences] = _record(self.model, step, inputs)
            self._forget()
            return out
        graph = self._graphs[sequences] = self._graphs.pop(sequences)
        if graph is None:
            return self.model(**inputs)
        replayed = graph.run(step, inputs)
        if graph.proved:
            return replayed
        out = self.model(**inputs)  # after it, so that its keys and values are those that stay in the cache
        graph.proved = torch.equal(replayed, out)
        if not graph.proved:
            self._graphs[sequences] = None
        return out

    def _forget(self) -> None:
        """What was not used for long: a recording keeps all that its step computed for each sequence."""
        kept = [sequences for sequences, graph in self._graphs.items() if graph]
        while sum(kept) > _MOST_SEQUENCES and len(kept) > 1:
            del self._graphs[kept.pop(0)]

    def reset(self) -> None:
        """Forget all recordings: LMDeploy changes the weights or the cache."""
        super().reset()
        self._graphs.clear()


class _Graph:
    """A recorded step.

    `makers` are the modules that make its inputs `made`: embeddings, and the cosines and sines of rotary angles.
    """

    def __init__(self, recording: Recording, makers: tuple[Any, Any], made: list[Tensor], out: Tensor) -> None:
        self.proved = False
        self._program = np.concatenate(recording.operators)
        self._kept = recording.kept
        self._makers, self._made, self._out = makers, made, out

    def run(self, step: Decoding, inputs: dict[str, Any]) -> Tensor:
        """What the model would return."""
        embedding, rotary = self._makers
        embedded = embedding(inputs["input_ids"])
        for to, new in zip(self._made, (embedded, *rotary(embedded, inputs["position_ids"])), strict=True):
            to.copy_(new.view(to.shape))
        step.run(self._program, self._out.dtype)
        return self._out.clone()


def _record(model: Any, step: Decoding, inputs: dict[str, Any]) -> tuple[Any, _Graph | None]:
    """The model's output, and the recording, if it is known where the step's inputs come from."""
    makers: dict[int, Any] = {}

    def note(module: Any, _: Any, outputs: Any) -> None:
        for each in outputs if isinstance(outputs, tuple) else (outputs,):
            if isinstance(each, Tensor):
                makers[each.data_ptr()] = module

    recording = step.recording = Recording()
    with ExitStack() as ends:
        ends.callback(setattr, step, "recording", None)
        for module in model.modules():
            if not any(module.children()):
                ends.callback(module.register_forward_hook(note).remove)
        out = model(**inputs)
    addresses = recording.first(NORM, "x"), recording.first(ROTATE, "second"), recording.first(ROTATE, "third")
    embedding, rotary, also_rotary = (makers.get(address) for address in addresses)
    if not isinstance(out, Tensor) or embedding is None or rotary is None or rotary is not also_rotary:
        return out, None
    return out, _Graph(recording, (embedding, rotary), [recording.inputs[each] for each in addresses], out)
