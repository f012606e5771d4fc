"""W4A16 folders kept between runs, found again by what they were made of: model, parameters, versions, lab3's code."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from lab3.cache import cache_root, made_once
from lab3.models import check_folder
from lab3.progress import Progress, silent
from lab3.quantize import QuantizeResult, quantize

KEPT_DAYS = 14  # since the last use: nobody prunes by hand, and each change of lab3's code makes new entries
_PACKAGES = ("lmdeploy", "torch", "transformers")
_SUFFIX = "-w4a16"


def quantize_cached(
    model: Path, options: Mapping[str, Any] | None = None, *, progress: Progress = silent
) -> QuantizeResult:
    """`lab3.quantize.quantize(model, …, **options)`, done once for the same content; `seconds` is then what it took.

    Raises what `quantize` raises, and InfraError if the cache cannot be written.
    """
    model, options = check_folder(Path(model).resolve()), dict(options or {})
    root = cache_root() / "quantized"
    entry = root / f"{model.name}-{cache_key(model, options)[:16]}"
    out = entry / f"{model.name}{_SUFFIX}"

    def make(target: Path) -> None:
        _prune(root)
        scratch = root / f".{target.name}.making"
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed: we hold the lock
        scratch.mkdir()
        try:
            result = quantize(model, scratch / out.name, **options, progress=progress)
            (scratch / "result.json").write_text(json.dumps(result.to_dict()), encoding="utf-8")
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    lock = root / f".{entry.name}.lock"
    made_once(entry, make, what=f"the quantized {model.name}", lock=lock, progress=progress)
    with suppress(OSError):  # the cache may be read-only: then nobody prunes it
        os.utime(entry)
    told = json.loads((entry / "result.json").read_text(encoding="utf-8"))
    told |= {"source": model, "out": out}
    for name in ("notices", "kv_int4_key_errors"):
        told[name] = tuple(told[name])
    return QuantizeResult(**{field.name: told[field.name] for field in fields(QuantizeResult)})


def cache_key(model: Path, options: Mapping[str, Any]) -> str:
    """A SHA-256 of all that the quantized folder depends on: files are read whole, their names and dates do not count.

    Options that are paths to files count by the file's content.
    """
    from lab3.vram import devices

    here = Path(__file__).parent
    asked = {name: _digest(value) if isinstance(value, Path) else value for name, value in options.items()}
    parts = {
        "model": {str(path.relative_to(model)): _digest(path) for path in _files(model)},
        "options": asked,
        "device": [device.name for device in devices()][:1],
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "lab3": {str(path.relative_to(here)): _digest(path) for path in [*code(), *here.glob("data/*.jsonl")]},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code() -> list[Path]:
    """lab3's modules that quantization can use: those that its own import, and so on."""
    here, found, queue = Path(__file__).parent, set[Path](), ["lab3.quantize", "lab3.quantize_worker"]
    while queue:
        name = queue.pop()
        if name.split(".")[0] != "lab3":  # where lab3 is installed, the other packages lie beside it
            continue
        stem = here.parent.joinpath(*name.split("."))
        path = next((each for each in (stem.with_suffix(".py"), stem / "__init__.py") if each.is_file()), None)
        if path is None or path in found:  # a name within a module, or seen
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(found)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prune(root: Path) -> None:
    """Remove what nobody used for long."""
    oldest = time.time() - KEPT_DAYS * 86400
    for entry in root.iterdir():
        with suppress(OSError):
            if entry.is_dir() and entry.stat().st_mtime < oldest:
                shutil.rmtree(entry)
