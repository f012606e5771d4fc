"""Importing gradio in half the time."""

from __future__ import annotations

import inspect
import sys
from typing import Any


def load_gradio() -> None:
    """Import gradio, without having its type stubs made up anew.

    At every import gradio 6 parses the source of each of its eighty components and compares it with the .pyi beside it
    (`gradio.component_meta.create_or_modify_pyi`): 1.2 of 2.8 CPU seconds. A class that has no file is left out
    there, so while gradio is imported its own classes have none.
    """
    if "gradio" in sys.modules:
        return
    original = inspect.getfile

    def getfile(item: Any) -> str:
        if isinstance(item, type) and item.__module__.partition(".")[0] == "gradio":
            raise OSError("its type stubs are not asked for")
        return original(item)

    inspect.getfile = getfile  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = original
