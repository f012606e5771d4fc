"""A submitted folder as the subject: its quantized model is inspected and served; its scripts are read, not run.

Student code runs only in a sandbox, which lab3 does not have yet, so what the scripts do is not shown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lab3.collect import kv_bytes_by_bits
from lab3.errors import UsageError
from lab3.evidence import QuantizationFacts, ScriptFacts, StructureFacts, ToolFacts
from lab3.models import model_tensors, read_config, resolve
from lab3.quantize import folder_bytes, predict_weight_bytes
from lab3.structure import inspect_structure
from lab3.subject import ServedSubject
from lab3.vram_predict import predict_model_bytes

MOST_FILES = 20_000  # looked at: a folder with a whole virtual environment in it is a mistake


@dataclass
class Submission(ServedSubject):
    """The folder `model`; `source` (a name, a path or a hub id) is the model that it was quantized from, if known."""

    source: str | None = None

    def __post_init__(self) -> None:
        self.name = "submission"
        self.mistakes = "subject"

    def w4a16(self) -> Path:
        """The one quantized model in the folder. Raises UsageError if there is none, or several."""
        files = _files(Path(self.model))
        found = [file.parent for file in files if file.name == "config.json" and _is_quantized(file.parent)]
        if len(found) != 1:
            raise UsageError(
                f"{len(found) or 'no'} quantized models in {self.model}",
                why=", ".join(str(folder) for folder in found) or "no config.json tells of a quantization",
                todo="hand in one folder with the W4A16 model in it",
            )
        return found[0]

    def scripts(self) -> tuple[ScriptFacts, ...]:
        """Each Python file and what it is for, read from its syntax tree."""
        folder = Path(self.model)
        return tuple(_read_script(file, folder) for file in _files(folder) if file.suffix == ".py")

    def quantization(self) -> QuantizationFacts:
        """Sizes; what the folder was before is measured if the source is known, and else predicted from its shape."""
        folder = self.w4a16()
        config, source = read_config(folder), self._source()
        told = config.quantization or {}
        group_size = told.get("group_size")
        before = _weight_bytes(source) if source else predict_model_bytes(replace(config, quantization=None))
        return QuantizationFacts(
            method=told.get("quant_method"),
            bits=told.get("bits"),
            group_size=group_size,
            weight_bytes_before=before,
            weight_bytes_after=_weight_bytes(folder),
            predicted_weight_bytes=predict_weight_bytes(
                config, group_size=group_size if isinstance(group_size, int) and group_size > 0 else 128
            ),
            folder_bytes_before=folder_bytes(source) if source else before,
            folder_bytes_after=folder_bytes(folder),
            perplexity_before=None,
            perplexity_after=None,
            perplexity_kv_int4=None,
            kv_int4_key_errors=(),
            kv_bytes_per_token=kv_bytes_by_bits(config),
            seconds=0.0,
        )

    def structure(self) -> StructureFacts:
        """Compared with the source's tensors if it is known."""
        return inspect_structure(self.w4a16(), source=self._source())

    def tools(self) -> tuple[ToolFacts, ...]:
        """lab3 asks the submitted model; that results go back is then lab3's doing and not the submission's."""
        return tuple(replace(asked, results_returned=None) for asked in super().tools())

    def _source(self) -> Path | None:
        if self.source is None:
            return None
        source = self.source
        return self.member.once("source model", lambda: resolve(source, progress=self.progress))

    def _lacking(self, what: str) -> str:
        return f"the folder does not show {what}: its scripts and commands are not run yet"


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below the folder, in the order of their names; nothing is followed out of it."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number >= MOST_FILES:
            raise UsageError(
                f"{folder} holds more than {MOST_FILES} files", todo="hand in the lab's folder, without environments"
            )
        if path.is_file() and not path.is_symlink():
            yield path


def _is_quantized(folder: Path) -> bool:
    try:
        return read_config(folder).quantization is not None
    except UsageError:
        return False


def _weight_bytes(folder: Path) -> int:
    return sum(tensor.size_bytes for tensor in model_tensors(folder))


def _read_script(file: Path, folder: Path) -> ScriptFacts:
    name = str(file.relative_to(folder))
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        return ScriptFacts(path=name, role="none", fault=f"no Python: {error}")
    words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    asks = "openai" in modules and "completions" in words
    role: Literal["chat", "tools", "none"] = "none" if not asks else "tools" if "tools" in words else "chat"
    return ScriptFacts(path=name, role=role, fault="")
