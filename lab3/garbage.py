"""How often Python looks for garbage in cycles: less often than by default, in processes that import much.

Importing torch, transformers and LMDeploy makes half a million objects, none of which is garbage. Python's default
looks at them again and again while it grows, a fifth of the time, and twice more when the process ends
(`bench/RESULTS.md`).
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_OBJECTS = 50_000  # between two looks at the young ones; Python's default is 700, and 2,000 from 3.13 on


def collect_rarely() -> None:
    """From now on in this process and what it forks, unless it collects more rarely already, or never.

    When the process ends, what it still holds is left to the system: `__del__` of what is in a cycle may not run then.
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    young, *older = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *older)


@contextmanager
def all_of_it_stays() -> Iterator[None]:
    """Garbage is not looked for in the block, which imports; what is there at its end is not looked at later either."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
