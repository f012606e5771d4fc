"""A marker for what `tox -e docs` alone runs."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "docs_slow: a page's commands, the long ones too (run by `tox -e docs`)")
