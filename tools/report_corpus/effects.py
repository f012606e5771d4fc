"""What happens to a screenshot before it is handed in: few colours, JPEG, crops, blur, a photograph, an edit."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Effect = Callable[[Image.Image], Image.Image]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def crop(left: float = 0, top: float = 0, right: float = 1, bottom: float = 1) -> Effect:
    """A part of the picture, in shares of its width and height."""

    def cut(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        return picture.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))

    return cut


def resized(factor: float) -> Effect:
    return lambda picture: picture.resize(
        (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BILINEAR
    )


def blurred(radius: float) -> Effect:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def photographed(degrees: float = 1.2) -> Effect:
    """As a telephone takes it: turned, lit from one side, a little soft."""

    def taken(picture: Image.Image) -> Image.Image:
        turned = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=(58, 52, 48))
        light = Image.linear_gradient("L").resize(turned.size).point(lambda value: 205 + value // 6)
        lit = ImageChops.multiply(turned, Image.merge("RGB", (light, light, light)))
        return lit.filter(ImageFilter.GaussianBlur(0.5))

    return taken


def pasted(
    box: tuple[int, int, int, int], text: str, *, ink: str, paper: str, size: int, font: str = "LiberationMono-Regular"
) -> Effect:
    """Another text put over `box`, as with a paint program."""

    def put(picture: Image.Image) -> Image.Image:
        edited = picture.copy()
        draw = ImageDraw.Draw(edited)
        draw.rectangle(box, fill=paper)
        draw.text((box[0], box[1]), text, fill=ink, font=ImageFont.truetype(f"{font}.ttf", size))
        return edited

    return put


def encoded(picture: Image.Image, suffix: str, *, colours: int = 32, quality: int = 75) -> bytes:
    """As PNG with a palette, or as JPEG."""
    out = io.BytesIO()
    if suffix == ".png":
        few = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        few.save(out, "PNG", optimize=True)
    else:
        picture.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()
