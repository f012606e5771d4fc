"""What a server on the CPU has in place of what is imported for pictures, compilers and clusters, or read repeatedly.

Reading a model's config makes transformers 5 import torchvision (for the type of a video), which imports torch._dynamo
and sympy, and PyTorch's sharded tensors. LMDeploy decorates functions with torch.compile, which imports torch._dynamo
even where it is disabled, and looks at AutoProcessor, which imports the rest. Its check of the environment compares two
tensors with torch.testing, which imports sharded tensors again, and sympy. Together they were a quarter of a server's
start. Vision and clusters are refused on this device (`lab3.cpu.limits`). And the tokenizer is read four times, by the
chat template twice, by the API and by the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class AutoProcessor:
    """transformers' AutoProcessor, imported when it is used."""

    @staticmethod
    def from_pretrained(*args: Any, **options: Any) -> Any:
        from transformers.models.auto.processing_auto import AutoProcessor

        return AutoProcessor.from_pretrained(*args, **options)


def of_folders(structure: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """transformers' `structure` of a folder or of the `__init__.py` in it, which it gives, and keeps, as two."""

    def of_folder(module_path: Any) -> Any:
        path = Path(module_path)
        return structure(path.parent if path.name == "__init__.py" else module_path)

    return of_folder


def read_once(loader: Any) -> Any:
    """transformers' `AutoTokenizer.from_pretrained`: a folder's tokenizer, the same for all who ask in the same way."""
    load, read = loader.__func__, dict[tuple[str, ...], Any]()

    def from_pretrained(cls: Any, name: Any, *inputs: Any, **options: Any) -> Any:
        if inputs or not Path(name).is_dir():
            return load(cls, name, *inputs, **options)
        asked = (str(Path(name).resolve()), repr(sorted(options.items())))
        if asked not in read:
            read[asked] = load(cls, name, **options)
        return read[asked]

    return classmethod(from_pretrained)


def never(_: Any) -> Callable[[], bool]:
    """In place of a question whether something is available."""
    return lambda: False


def as_it_is(compiler: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` where torch._dynamo is disabled: the function itself, or a decorator that gives it."""

    def compiled(model: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
        return model if model is not None else lambda function: function

    return compiled if os.environ.get("TORCHDYNAMO_DISABLE") == "1" else compiler
