"""What the bytes of a picture are, and whether they can be looked at: whole, of a known kind, and no bomb."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_PIXELS = 80_000_000
_SUFFIX_OF = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "DIB": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".svg", ".heic"]
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`suffix` of its format; `why` it cannot be used, empty if it can; its size in pixels."""

    suffix: str = ""
    why: str = ""
    width: int = 0
    height: int = 0


@contextmanager
def _whole_pictures() -> Iterator[None]:
    """LMDeploy, once imported, has Pillow take pictures that are cut short (lmdeploy/vl/media/image.py)."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def kind_of(data: bytes) -> Kind:
    """Decodes the picture once, so that nobody after has to expect a broken one."""
    from PIL import Image, UnidentifiedImageError

    if unusable := _no_picture(data):
        return Kind(why=unusable)
    try:
        with warnings.catch_warnings(), _whole_pictures():
            warnings.simplefilter("ignore")
            Image.init()
            known = [each for each in _SUFFIX_OF if each in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=known) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    return Kind(why=f"it has {width} x {height} pixels, more than lab3 looks at")
                image.load()
                return Kind(suffix=_SUFFIX_OF.get(image.format or "", ".png"), width=width, height=height)
    except UnidentifiedImageError:
        return Kind(why="it is no picture, or of a kind that lab3 does not read")
    except Image.DecompressionBombError:
        return Kind(why="it has more pixels than lab3 looks at")
    except Exception as error:  # decoders raise anything for what is broken
        return Kind(why=f"the picture is damaged: {str(error)[:100] or type(error).__name__}")


def _no_picture(data: bytes) -> str:
    head = data[:300].lstrip()
    if not data:
        return "the file is empty"
    if head.startswith((b"<svg", b"<?xml")):
        return "a drawing (SVG), in which lab3 reads no text"
    if head.lower().startswith((b"<!doctype", b"<html")):
        return "a web page where the picture should be"
    if data.startswith(b"version https://git-lfs"):
        return "only Git LFS' pointer to the picture was handed in"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "a HEIC picture, which lab3 does not read: save it as PNG or JPEG"
    return ""
