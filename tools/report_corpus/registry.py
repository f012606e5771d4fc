"""The reports of the corpus, by the name of their folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.report_corpus.draft import Draft

Writer = Callable[[Draft], None]
REPORTS: dict[str, tuple[Writer, dict[str, Any]]] = {}


def report(slug: str, **settings: Any) -> Callable[[Writer], Writer]:
    """A function that writes the report in `slug`; `settings` are its Draft's: look, prompt, images, suffix."""

    def keep(writer: Writer) -> Writer:
        REPORTS[slug] = (writer, settings)
        return writer

    return keep
