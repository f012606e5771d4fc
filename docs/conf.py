"""Sphinx: `tox -e docs` builds the pages into docs/_build. Nothing is fetched, now or by a browser."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab3 import __version__

project = "lab3"
author = "lab3"
copyright = "Apache-2.0"
release = version = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings have Markdown's single backticks
nitpicky = False

html_theme = "furo"
html_title = f"lab3 {release}"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = "$ "  # which is not copied, nor is the output
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"
