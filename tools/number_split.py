"""Which numbers the tool caller is trained on, and which are kept for measuring it. Both generators ask here."""

from __future__ import annotations

import zlib

_SHARE = 6  # one number in six is kept
_SALT = 245  # with it 4, 6 and 7 are, and none of the lab's own 3, 5, 8, 2, 16


def is_held_out(number: int | float) -> bool:
    """Whether `number` is kept for measuring: then it is nowhere in the training data, as operand or as result.

    Decided by the digits alone, so that 12, -12 and 12.0 are on one side: CRC-32 of salt and text.
    """
    magnitude = abs(number)
    text = str(int(magnitude)) if float(magnitude).is_integer() else repr(magnitude)
    return zlib.crc32(f"{_SALT}:{text}".encode()) % _SHARE == 0
