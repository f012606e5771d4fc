"""A report's pictures as its page shows them: decoded and written anew: no byte of a student's reaches a browser."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab3.errors import UsageError
from lab3.report.json_report import write_report
from lab3.reports.model import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = "pictures"  # its folder
_LIST = "pictures.json"
_WIDEST = 2400  # pixels
_TALLEST = 12_000
_MOST_PNG = 1 << 20  # bytes; larger ones are saved as JPEG


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture of a page. `width` and `height` are the upright original's, in pixels: boxes are measured in them."""

    file: str
    width: int
    height: int


def save_previews(pictures: Iterable[Picture], folder: Path) -> None:
    """Write the pictures that are at hand to `folder`, each once. What cannot be decoded has none."""
    found = {}
    for picture in pictures:
        if picture.path is not None and picture.digest and picture.digest not in found:
            preview = _saved(picture.path, picture.digest, folder / PICTURES)
            if preview is not None:
                found[picture.digest] = {"file": preview.file, "width": preview.width, "height": preview.height}
    write_report(found, folder / PICTURES / _LIST)


def previews(folder: Path) -> Mapping[str, Preview]:
    """The pictures of the report whose results lie in `folder`, by their digest."""
    try:
        told = json.loads((folder / PICTURES / _LIST).read_text(encoding="utf-8"))
        return {digest: Preview(**each) for digest, each in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def preview_of(out: Path, name: str, digest: str) -> Path | None:
    """The file of a picture of the report `name`, whose results lie in `out`."""
    found = previews(out / name).get(digest)
    return out / name / PICTURES / Path(found.file).name if found else None


def data_uri(preview: Preview, folder: Path) -> str:
    """The picture as a page holds it, empty if its file is gone."""
    try:
        content = (folder / PICTURES / Path(preview.file).name).read_bytes()
    except OSError:
        return ""
    kind = "jpeg" if preview.file.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _saved(path: Path, digest: str, folder: Path) -> Preview | None:
    from PIL import Image

    from lab3.reports.ocr_picture import load_pixels

    try:
        picture = Image.fromarray(load_pixels(path))  # as OCR looks at it: upright, and solid
    except UsageError:
        return None
    suffix, content = _encoded(picture)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{digest[:32]}.{suffix}"
    beside = folder / f".{name}.new"
    beside.write_bytes(content)
    beside.replace(folder / name)
    return Preview(file=name, width=picture.width, height=picture.height)


def _encoded(picture: Image) -> tuple[str, bytes]:
    scale = min(1.0, _WIDEST / picture.width, _TALLEST / picture.height)
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    png = io.BytesIO()
    picture.save(png, "PNG")
    if png.tell() <= _MOST_PNG:
        return "png", png.getvalue()
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=88)
    return "jpg", jpeg.getvalue()
