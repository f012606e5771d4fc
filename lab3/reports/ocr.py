"""Off-line OCR of a report's pictures, once for each content: `recognise` keeps what it saw in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lab3.cache import cache_root
from lab3.reports.model import Recognised, TextLine

_LIBRARIES = ("rapidocr", "onnxruntime", "opencv-python", "numpy", "pillow")
_FOLDER = "ocr"


def recognise(path: Path, *, digest: str) -> Recognised:
    """The text of a picture. `digest` is the SHA-256 of its bytes, as Picture.digest has it.

    Raises UsageError if it is no picture, is broken, or is far too large.
    """
    kept = cache_root() / _FOLDER / version()[:16] / f"{digest}.json" if _is_digest(digest) else None
    if kept and (known := _loaded(kept)):
        return known
    seen = _look(path, digest)
    if kept:
        _keep(kept, seen)
    return seen


def _look(path: Path, digest: str) -> Recognised:
    from lab3.reports.ocr_picture import load_pixels
    from lab3.reports.ocr_rows import read_rows

    pixels = load_pixels(path)
    lines, pieces = read_rows(pixels)
    height, width = pixels.shape[:2]
    return Recognised(digest=digest, width=width, height=height, lines=lines, pieces=pieces)


@lru_cache(maxsize=1)
def version() -> str:
    """What decides over what is seen, beside the picture: the libraries, and these modules."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    modules = {path.name: path.read_bytes() for path in sorted(Path(__file__).parent.glob("ocr*.py"))}
    code = {name: hashlib.sha256(content).hexdigest() for name, content in modules.items()}
    return hashlib.sha256(json.dumps([libraries, code], sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(each in "0123456789abcdef" for each in text)


def _loaded(kept: Path) -> Recognised | None:
    """What was kept; None if there is nothing, or it cannot be understood."""
    try:
        told: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return Recognised(
            digest=str(told["digest"]),
            width=int(told["width"]),
            height=int(told["height"]),
            lines=tuple(map(_line, told["lines"])),
            pieces=tuple(map(_line, told["pieces"])),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _line(told: dict[str, Any]) -> TextLine:
    left, top, right, bottom = map(int, told["box"])
    return TextLine(str(told["text"]), (left, top, right, bottom), float(told["confidence"]))


def _keep(kept: Path, seen: Recognised) -> None:
    """Written beside, then renamed: who finds it finds all of it. A cache that cannot be written is none."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=kept.parent, prefix=".", suffix=".json")
        _write(handle, json.dumps(asdict(seen), ensure_ascii=False), Path(beside), kept)
    except OSError:
        return


def _write(handle: int, text: str, beside: Path, kept: Path) -> None:
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        beside.replace(kept)
    finally:
        beside.unlink(missing_ok=True)
