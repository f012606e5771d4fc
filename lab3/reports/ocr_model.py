"""RapidOCR's two models, loaded once in a process: where text stands in a picture, and what a strip of it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from lab3.heap import keep_freed_memory

if TYPE_CHECKING:
    from lab3.reports.ocr_picture import Pixels

MOST_THREADS = 2  # more gain little
_STRIP_HEIGHT = 48  # pixels, what the model for text was trained on
_BATCH_PIXELS = 48 * 6000  # of strips that are read together: memory stays bounded
_MARGIN = 32
_WIDEST = 4800
_USE = Lock()
threads = MOST_THREADS


def use_threads(count: int) -> None:
    """How many the models compute with, if they are not loaded yet. What they see does not depend on it."""
    global threads
    threads = max(1, min(count, MOST_THREADS))


@dataclass(frozen=True)
class Letter:
    """A character, how sure the model is, and where its middle stands, in pixels of the picture."""

    text: str
    sure: float
    x: float


@dataclass(frozen=True)
class Strip:
    """A part of the picture with one line of text. `baseline` is the first row below its letters' feet, where known."""

    left: int
    top: int
    right: int
    bottom: int
    baseline: int = 0

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def find_strips(pixels: Pixels, *, scale: float) -> list[Strip]:
    """Where text stands, looked for at `scale` times the picture's size."""
    return strips_of(find_quads(pixels, scale=scale), width=pixels.shape[1], height=pixels.shape[0])


def find_quads(pixels: Pixels, *, scale: float) -> list[list[tuple[float, float]]]:
    """The same as quadrilaterals, which may lean: upper left, upper right, lower right, lower left."""
    import cv2
    import numpy as np

    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    seen: Any = cv2.resize(pixels, size, interpolation=how) if scale != 1 else pixels
    ground = [int(each) for each in np.median(pixels.reshape(-1, 3)[:: max(1, height * width // 100_000)], axis=0)]
    seen = cv2.copyMakeBorder(seen, _MARGIN, _MARGIN, _MARGIN, _MARGIN, cv2.BORDER_CONSTANT, value=ground[::-1])
    with _USE:
        found = _models().detector(np.ascontiguousarray(seen[:, :, ::-1]))
    if found.boxes is None:
        return []
    return [[(float(x), float(y)) for x, y in (corners - _MARGIN) / scale] for corners in found.boxes]


def strips_of(quads: Sequence[Sequence[tuple[float, float]]], *, width: int, height: int) -> list[Strip]:
    """The upright strips that hold them, from the top down."""
    strips = []
    for corners in quads:
        across, down = [x for x, _ in corners], [y for _, y in corners]
        strip = Strip(
            max(0, math.floor(min(across))),
            max(0, round(min(down))),
            min(width, math.ceil(max(across))),
            min(height, round(max(down))),
        )
        if strip.width >= 3 and strip.height >= 4:
            strips.append(strip)
    return sorted(strips, key=lambda each: (each.top, each.left))


def read_strips(pixels: Pixels, strips: Sequence[Strip], *, stretch: float = 1.0) -> list[list[Letter]]:
    """What each strip says, letter by letter. `stretch` widens the letters before they are read."""
    import cv2
    import numpy as np

    told: list[list[Letter]] = [[] for _ in strips]
    widths = [
        min(_WIDEST, max(16, math.ceil(each.width * _STRIP_HEIGHT / max(1, each.height) * stretch))) for each in strips
    ]
    for numbers in _batches(widths):
        wide = -(-max(widths[number] for number in numbers) // 32) * 32
        batch: Any = np.zeros((len(numbers), 3, _STRIP_HEIGHT, wide), np.float32)
        for row, number in enumerate(numbers):
            strip = strips[number]
            cut = pixels[strip.top : strip.bottom, strip.left : strip.right, ::-1]
            sized: Any = cv2.resize(cut, (widths[number], _STRIP_HEIGHT), interpolation=cv2.INTER_CUBIC)
            batch[row, :, :, : widths[number]] = (sized.astype(np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5
        with _USE:
            scores: Any = _models().reader(batch)
        for row, number in enumerate(numbers):
            step = wide / scores.shape[1] * strips[number].width / widths[number]
            told[number] = _letters(scores[row], strips[number].left, step)
    return told


def _batches(widths: Sequence[int]) -> list[list[int]]:
    """Strips of like width together, so that little of a batch is padding."""
    batches: list[list[int]] = []
    for number in sorted(range(len(widths)), key=lambda each: widths[each]):
        fits = batches and (len(batches[-1]) + 1) * widths[number] * _STRIP_HEIGHT <= _BATCH_PIXELS
        if fits and widths[number] <= 1.25 * widths[batches[-1][0]] + 32:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _letters(scores: Any, left: float, step: float) -> list[Letter]:
    """CTC: the likeliest character of each step; equal neighbours are one, and the first class is none."""
    import numpy as np

    best = scores.argmax(axis=1)
    changes = np.ones(len(best), bool)
    changes[1:] = best[1:] != best[:-1]
    letters = []
    for start in np.flatnonzero(changes & (best != 0)):
        end = int(start)
        while end + 1 < len(best) and best[end + 1] == best[start]:
            end += 1
        middle = (start + end + 1) / 2
        sure = float(scores[start : end + 1, best[start]].max())
        letters.append(Letter(_models().characters[best[start]], sure, left + middle * step))
    return letters


@dataclass(frozen=True)
class _Models:
    detector: Any
    reader: Any
    characters: list[str]


@lru_cache(maxsize=1)
def _models() -> _Models:
    from rapidocr import RapidOCR

    keep_freed_memory()
    settings = {
        "Global.log_level": "error",
        "Global.use_cls": False,
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_side_len": 64,  # the picture comes in the size that it is to be looked at
    }
    engine = RapidOCR(params=settings)
    detector, recogniser = engine._load_det_model(), engine._load_rec_model()
    return _Models(detector, recogniser.session, recogniser.postprocess_op.character)
