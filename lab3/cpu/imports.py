"""What a server on the CPU does without: libraries that are imported for pictures, compilers and clusters only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def import_less() -> None:
    """Have LMDeploy and transformers not import what text on a CPU never uses. For a process of its own, and first.

    Reading a model's config makes transformers 5 import torchvision (for the type of a video), which imports
    torch._dynamo and sympy, and PyTorch's sharded tensors. LMDeploy decorates functions with torch.compile, which
    imports torch._dynamo even where it is disabled, and looks at AutoProcessor, which imports the rest. Its check of
    the environment compares two tensors with torch.testing, which imports sharded tensors again, and sympy. Together
    they were a quarter of a server's start. Vision and clusters are refused on this device (`lab3.cpu.limits`).
    And transformers reads the sources of all its models twice to know what is in them; once will do.
    """
    import torch
    import torch.testing._comparison
    import transformers
    from transformers.utils import import_utils

    if hasattr(torch.testing._comparison, "_HAS_DTENSOR"):
        torch.testing._comparison._HAS_DTENSOR = False
    if structure := getattr(import_utils, "create_import_structure_from_path", None):
        import_utils.create_import_structure_from_path = _of_folders(structure)

    for module in (import_utils, transformers.utils):
        for name in ("is_torchvision_available", "is_torch_distributed_available"):
            if hasattr(module, name):
                setattr(module, name, _never)
    transformers.AutoProcessor = _AutoProcessor
    if os.environ.setdefault("TORCHDYNAMO_DISABLE", "1") == "1":
        torch.compile = _as_it_is


class _AutoProcessor:
    """transformers' AutoProcessor, imported when it is used."""

    @staticmethod
    def from_pretrained(*args: Any, **options: Any) -> Any:
        from transformers.models.auto.processing_auto import AutoProcessor

        return AutoProcessor.from_pretrained(*args, **options)


def _of_folders(structure: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """transformers' `structure` of a folder or of the `__init__.py` in it, which it gives, and keeps, as two."""

    def of_folder(path: Any) -> Any:
        return structure(Path(path).parent if str(path).endswith("__init__.py") else path)

    return of_folder


def _never() -> bool:
    return False


def _as_it_is(model: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """`torch.compile` where torch._dynamo is disabled: the function itself, or a decorator that gives it."""
    return model if model is not None else lambda function: function
