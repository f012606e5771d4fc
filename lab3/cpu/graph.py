"""Decoding steps without Python between the operators: recorded once for a number of requests, then replayed.

What a CUDA graph is on a GPU. The first step of a batch size runs as always, and each operator of lab3's that it calls
notes what it did with which memory; the second runs both ways, and only when they agree in every bit are later ones
replayed, in one call of `lab3.cpu.replay`. So a model whose step holds anything else than these operators just stays
as it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.backends.graph_runner import GraphRunner
from torch import Tensor, nn

from lab3.cpu import cores
from lab3.cpu.compiled import stored
from lab3.cpu.replay import COUNTERS, NORM, OPERATOR, ROTATE, replay

_HALVES = (torch.float16, torch.bfloat16)


class Recording:
    """What the operators of one step did: `program` is what `replay` reads."""

    current: Recording | None = None

    def __init__(self) -> None:
        self.operators: list[Any] = []
        self.kept: list[Tensor] = []  # the memory that the program's addresses are of
        self.inputs: dict[int, Tensor] = {}  # by address: what no operator made
        self._made: set[int] = set()
        self.complete = True

    def note(self, kind: int, *, tasks: int, reads: dict[str, Tensor], writes: dict[str, Tensor], **facts: Any) -> None:
        """An operator of `kind`, with the tensors that it read and wrote by their names in `OPERATOR`, and sizes."""
        halves = all(each.dtype in (*_HALVES, torch.uint8) for each in (*reads.values(), *writes.values()))
        self.complete &= halves
        operator = np.zeros((), OPERATOR)
        operator["kind"], operator["tasks"] = kind, tasks
        for name, tensor in (*reads.items(), *writes.items()):
            operator[name] = tensor.data_ptr()
            self.kept.append(tensor)
        for name, value in facts.items():
            operator[name] = value
        for tensor in reads.values():
            if tensor.data_ptr() not in self._made:
                self.inputs.setdefault(tensor.data_ptr(), tensor)
        self._made.update(tensor.data_ptr() for tensor in writes.values())
        self.operators.append(operator)

    def first(self, kind: int, name: str) -> int:
        """The address `name` of the first operator of `kind`, 0 if there is none."""
        return next((int(each[name]) for each in self.operators if each["kind"] == kind), 0)

    def fails(self) -> None:
        """An operator that cannot be replayed was called."""
        self.complete = False


def recording() -> Recording | None:
    """The recording of the step that is being computed, if it is recorded."""
    return Recording.current


class CpuGraphRunner(GraphRunner):  # type: ignore[misc]
    """Runs the model, decoding steps from their recordings where there are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._graphs: dict[int, _Graph | None] = {}  # by the number of sequences; None: cannot be replayed

    def __call__(self, **inputs: Any) -> Any:
        """What the model returns for `inputs`, those of its `forward`."""
        lengths = inputs["attn_metadata"].query_lengths
        if set(lengths) != {1} or inputs.get("inputs_embeds") is not None:
            return self.model(**inputs)
        graph = self._graphs.get(len(lengths), self)
        if graph is None:
            return self.model(**inputs)
        if graph is self or not graph.fits(inputs):
            out, self._graphs[len(lengths)] = _record(self.model, inputs)
            return out
        if graph.proved:
            return graph.run(inputs)
        out = self.model(**inputs)
        graph.proved = torch.equal(graph.run(inputs), out)
        if not graph.proved:
            self._graphs[len(lengths)] = None
        return out

    def reset(self) -> None:
        """Forget all recordings: LMDeploy is about to change weights or the cache."""
        super().reset()
        self._graphs.clear()


class _Graph:
    """A recorded step, with the modules that make its inputs: embeddings, and the rotary angles' cosines and sines."""

    def __init__(
        self, recorded: Recording, out: Tensor, modules: tuple[Any, Any], made: list[Tensor], inputs: dict[str, Any]
    ) -> None:
        self.proved = False
        self._program = np.array(recorded.operators)
        self._counters = np.zeros((len(self._program), COUNTERS), np.int64)
        self._kept = recorded.kept
        self._out = out
        self._modules, self._made = modules, made
        self._cache = inputs["past_key_values"][0][0]
        self._like = stored(out.new_empty(1)), stored(self._cache.new_empty(1))

    def fits(self, inputs: dict[str, Any]) -> bool:
        """Whether the cache is still where it was."""
        return bool(inputs["past_key_values"][0][0].data_ptr() == self._cache.data_ptr())

    def run(self, inputs: dict[str, Any]) -> Tensor:
        """What the model would return."""
        embedding, rotary = self._modules
        embedded = embedding(inputs["input_ids"])
        for to, new in zip(self._made, (embedded, *rotary(embedded, inputs["position_ids"])), strict=True):
            to.copy_(new.view(to.shape))
        meta = inputs["attn_metadata"]
        lengths, blocks = np.array(meta.kv_lengths, np.int64), np.ascontiguousarray(meta.blocks)
        self._counters.fill(0)
        step = self._program, *self._like, meta.fill_block, meta.fill_offset, lengths, blocks, self._counters
        cores.together(lambda: replay(*step))
        return self._out.clone()


def _record(model: Any, inputs: dict[str, Any]) -> tuple[Any, _Graph | None]:
    """The model's output, and the recording if everything in it can be replayed."""
    recorded = Recording.current = Recording()
    made: dict[int, Any] = {}

    def note(module: nn.Module, _: Any, outputs: Any) -> None:
        for each in outputs if isinstance(outputs, tuple) else (outputs,):
            if isinstance(each, Tensor):
                made[each.data_ptr()] = module

    try:
        with ExitStack() as hooks:
            for module in model.modules():
                if not any(module.children()):
                    hooks.callback(module.register_forward_hook(note).remove)
            out = model(**inputs)
    finally:
        Recording.current = None
    if not (recorded.complete and isinstance(out, Tensor)):
        return out, None
    addresses = recorded.first(NORM, "x"), recorded.first(ROTATE, "second"), recorded.first(ROTATE, "third")
    embedding, *rotary = (made.get(address) for address in addresses)
    if embedding is None or rotary[0] is None or rotary[0] is not rotary[1]:
        return out, None
    recorded.kept.append(out)
    return out, _Graph(recorded, out, (embedding, rotary[0]), [recorded.inputs[each] for each in addresses], inputs)
