"""Where Python may not keep its bytecode, lab3's cache keeps it: LMDeploy and torch are not compiled at each start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from lab3.cache import cache_root

PACKAGES = ("lmdeploy", "torch", "transformers")  # which a server imports most of


def kept(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables for a child process that imports LMDeploy; {} where Python keeps its bytecode by itself.

    Python keeps none with PYTHONDONTWRITEBYTECODE, as many a container image sets it, or in folders that the user may
    not write. A start then takes twice as long, and each one does (`bench/RESULTS.md`). A PYTHONPYCACHEPREFIX of the
    user's own stays as it is.
    """
    if environ.get("PYTHONPYCACHEPREFIX"):
        return {}
    forbidden = bool(environ.get("PYTHONDONTWRITEBYTECODE"))
    if not any(not file.exists() and (forbidden or not _may_appear(file)) for file in _bytecode_files()):
        return {}
    return {"PYTHONPYCACHEPREFIX": str(cache_root() / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


def _bytecode_files() -> Iterator[Path]:
    """Of the packages' first modules: what has these has the others."""
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            yield Path(cache_from_source(spec.origin))


def _may_appear(file: Path) -> bool:
    folder = file.parent if file.parent.exists() else file.parent.parent
    return os.access(folder, os.W_OK)
