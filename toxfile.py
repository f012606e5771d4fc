"""Read by tox when it starts: uv, with which it installs, gets the package index that pip is set to.

uv does not read pip's configuration file (docs.astral.sh/uv/pip/compatibility), in which a mirror usually stands.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping

# pip's setting, and uv's variables that say the same, of which the first is set
_SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "trusted-host": ("UV_INSECURE_HOST",),
}


def index_of_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """uv's variables for the index that pip is set to, by its files or `PIP_*`; none that `environ` has already."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], env=dict(environ), capture_output=True, text=True, check=False
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():  # scope.setting='value', of several files already the one that counts
        name, _, value = line.partition("=")
        scope, _, setting = name.rpartition(".")
        if setting in _SETTINGS and scope in ("global", "install", ":env:") and value.startswith(("'", '"')):
            found[f"{scope}.{setting}"] = " ".join(ast.literal_eval(value).split())
    told = {}
    for setting, variables in _SETTINGS.items():
        values = [found.get(f"{scope}.{setting}") for scope in (":env:", "install", "global")]
        chosen = next((each for each in values if each), None)
        if chosen and not any(variable in environ for variable in variables):
            told[variables[0]] = chosen
    return told


if "tox" in sys.modules:
    os.environ.update(index_of_pip(os.environ))
