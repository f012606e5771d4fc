"""Photographs of a screen: how far their rows lean, and the picture with its rows level.

The detector tells each piece of text as a quadrilateral. Their mean slope is how the camera was turned; a slope that
changes from the top down is how it was tilted. Both are undone by one projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from lab3.reports.model import Box

if TYPE_CHECKING:
    from lab3.reports.ocr_picture import Pixels

Quad = Sequence[tuple[float, float]]  # upper left, upper right, lower right, lower left; in pixels
_LONG = 5.0  # times as wide as high: its slope can be told
_LEAST_TOLD = 3
_LEVEL = math.radians(0.35)  # a screenshot is level to within the detector's noise
_NOISE = 1.5  # pixels by which the detector's corners are off
_STEEP = math.radians(20)
_ODD = math.radians(2.5)  # what is farther from the line through the others is no row of the same screen


@dataclass(frozen=True)
class Upright:
    """The picture with level rows, and the way back to the picture as it is stored."""

    pixels: Pixels
    back: Any  # 3 × 3, from the level picture's pixels to the stored one's
    width: int
    height: int

    def stored(self, box: Box) -> Box:
        """The place of a box in the picture as it is stored."""
        import cv2
        import numpy as np

        left, top, right, bottom = box
        corners = np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float32)
        told: Any = cv2.perspectiveTransform(corners, self.back)[0]
        (x, y), (to_x, to_y) = told.min(axis=0), told.max(axis=0)
        return (
            max(0, min(self.width - 1, round(float(x)))),
            max(0, min(self.height - 1, round(float(y)))),
            min(self.width, max(1, round(float(to_x)))),
            min(self.height, max(1, round(float(to_y)))),
        )


def upright(pixels: Pixels, quads: Sequence[Quad]) -> Upright | None:
    """The picture made level; None if its rows are level already, or too few to tell."""
    import cv2
    import numpy as np

    told = [found for each in quads if (found := _slope(each))]
    level = sum(abs(slope) * length <= _NOISE for slope, _, length in told)
    if len(told) < _LEAST_TOLD or 2 * level >= len(told):
        return None
    slopes = [slope for slope, _, _ in told]
    turned = median(slopes)
    told = [each for each in told if abs(each[0] - turned) < _ODD]
    if len(told) < _LEAST_TOLD or abs(turned) > _STEEP:
        return None
    height, width = pixels.shape[:2]
    at = np.array([middle[1] / height - 0.5 for _, middle, _ in told])
    weights = np.array([length for _, _, length in told])
    tilt, mean = _line(at, np.array([slope for slope, _, _ in told]), weights)
    if abs(mean) < _LEVEL and abs(tilt) < 2 * _LEVEL:
        return None
    tilt = tilt if abs(tilt) >= _LEVEL else 0.0
    centre = (width / 2, height / 2)
    turn = np.vstack([cv2.getRotationMatrix2D(centre, math.degrees(mean), 1.0), [0, 0, 1]])
    upper, lower = (math.tan(tilt * share) * width / 2 for share in (-0.5, 0.5))
    leaning = np.array([[0, -upper], [width, upper], [width, height + lower], [0, height - lower]], np.float32)
    straight = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    whole = np.asarray(cv2.getPerspectiveTransform(leaning, straight), np.float64) @ turn
    corners: Any = cv2.perspectiveTransform(straight[None], whole)[0]
    least, most = corners.min(axis=0), corners.max(axis=0)
    whole = np.array([[1, 0, -least[0]], [0, 1, -least[1]], [0, 0, 1]]) @ whole
    size = (math.ceil(float(most[0] - least[0])), math.ceil(float(most[1] - least[1])))
    if size[0] * size[1] > 2 * width * height + 100_000:
        return None
    ground = [int(each) for each in np.median(pixels.reshape(-1, 3)[:: max(1, height * width // 100_000)], axis=0)]
    made: Any = cv2.warpPerspective(pixels, whole, size, flags=cv2.INTER_CUBIC, borderValue=ground)
    return Upright(np.ascontiguousarray(made), np.linalg.inv(whole), width, height)


def _slope(quad: Quad) -> tuple[float, tuple[float, float], float] | None:
    """(slope in radians, middle, length) of a piece that is long enough to tell it."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = quad
    along = ((bx + cx - ax - dx) / 2, (by + cy - ay - dy) / 2)
    length = math.hypot(*along)
    high = math.hypot(dx - ax, dy - ay)
    if length < _LONG * max(1.0, high) or along[0] <= 0:
        return None
    return math.atan2(along[1], along[0]), ((ax + cx) / 2, (ay + cy) / 2), length


def _line(at: Any, values: Any, weights: Any) -> tuple[float, float]:
    """(rise from the top to the bottom, value in the middle) of the line through weighted values."""
    import numpy as np

    if float(np.ptp(at)) < 0.2 or len(at) < 2 * _LEAST_TOLD:
        return 0.0, float(np.average(values, weights=weights))
    rise, mean = np.polyfit(at, values, 1, w=np.sqrt(weights))
    return float(rise), float(mean)
