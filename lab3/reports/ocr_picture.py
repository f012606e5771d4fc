"""A picture of a report as plain pixels: whatever it was saved as, and however large it claims to be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab3.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.uint8]  # rows, columns, red green blue

MOST_PIXELS = 60_000_000
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


def load_pixels(path: Path) -> Pixels:
    """The first frame of the picture, upright, on a ground that its text stands out from.

    Raises UsageError if it is no picture, is broken, or has more than 60 million pixels.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise UsageError(f"{path.name} is too large: {opened.width} × {opened.height} pixels")
                opened.seek(0)
                upright = ImageOps.exif_transpose(opened)
                return np.ascontiguousarray(np.asarray(_flat(upright), dtype=np.uint8))
    except UsageError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path.name} is no picture that can be read: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError) as error:
        raise UsageError(f"{path.name} is broken: {error}") from error


def _flat(picture: Image) -> Image:
    """Three channels of eight bits, with what is transparent made solid."""
    from PIL import Image

    if picture.mode in _DEEP:
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (*_ground(layered), 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


def _ground(layered: Image) -> tuple[int, int, int]:
    """White, unless what is solid is itself light."""
    import numpy as np

    values: Any = np.asarray(layered)
    solid = values[values[..., 3] > 200]
    share = len(solid) / max(1, values.shape[0] * values.shape[1])
    light = len(solid) > 0 and float(solid[:, :3].mean()) > 170
    return _BLACK if light and share < 0.5 else _WHITE


def _eight_bits(picture: Image) -> Image:
    """Brightness stretched to 0 to 255: sixteen bits say little about where white is."""
    import numpy as np
    from PIL import Image

    values: Any = np.asarray(picture, dtype=np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scaled = np.nan_to_num((values - low) * (255.0 / (high - low or 1.0)))
    return Image.fromarray(scaled.astype(np.uint8))
