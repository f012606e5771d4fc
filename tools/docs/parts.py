"""Which parts of the pages are generated, and by what."""

from __future__ import annotations

import re
from collections.abc import Callable

from tools.docs import errors, lab_numbers, options

_PART = re.compile(
    r"(<!-- begin (?P<name>[\w-]+): python -m tools\.docs -->\n).*?(?P<end><!-- end (?P=name) -->)", re.S
)


def rewritten(page: str) -> str:
    """The page's text with its generated parts made anew. Raises KeyError for a part that nobody makes."""
    return _PART.sub(lambda part: f"{part[1]}\n{parts()[part['name']]()}\n\n{part['end']}", page)


def parts() -> dict[str, Callable[[], str]]:
    """What can be generated, by name: functions that return Markdown."""
    return {
        "commands": options.commands,
        "pytest-options": options.pytest_options,
        "errors-usage": errors.usage,
        "errors-machine": errors.machine,
        "errors-pytest": errors.of_pytest,
        "errors-servers": errors.servers,
        "errors-commands": errors.of_commands,
        "memory-en": lambda: lab_numbers.memory_table("en"),
        "memory-zh": lambda: lab_numbers.memory_table("zh"),
        "sizes-en": lambda: lab_numbers.size_table("en"),
        "sizes-zh": lambda: lab_numbers.size_table("zh"),
        "tokens-en": lambda: lab_numbers.token_table("en"),
        "tokens-zh": lambda: lab_numbers.token_table("zh"),
    }
