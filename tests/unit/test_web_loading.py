"""Gradio is imported as it is, but for the type stubs that it would make up anew."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# In a process of its own, for a module is imported once.
LOADS = """
import inspect, json, sys
opened = []
sys.addaudithook(lambda event, told: opened.append(str(told[0])) if event == "open" else None)
from lab3.web.loading import load_gradio
load_gradio()
stubs = [path for path in opened if path.endswith(".pyi")]
import gradio
from gradio.components import Textbox
with gradio.Blocks() as page:
    Textbox().submit(lambda: None)
print(json.dumps({"stubs": stubs, "file": inspect.getfile(Textbox), "components": len(page.blocks)}))
"""


@pytest.mark.slow
def test_no_type_stub_is_looked_at_and_all_else_is_gradio_s() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(done.stdout)
    assert told["stubs"] == []
    assert told["file"].endswith("textbox.py")
    assert told["components"] == 2
