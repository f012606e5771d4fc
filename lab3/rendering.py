"""Whether a model's chat template shows the tools of a request: where it does not, the model never hears of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab3.errors import UsageError

_PROBE = "lab3_probe_of_the_template"


def check_tools_shown(folder: Path) -> None:
    """Render a conversation with a tool by the folder's chat template, as LMDeploy does, and look for the tool.

    Raises UsageError if it is not there: then LMDeploy takes requests with tools and says nothing, and no model can
    call what it was not shown. A folder without a template is not judged: LMDeploy chooses one of its own.
    """
    template = chat_template(folder)
    if template is None:
        return
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    # LMDeploy 0.18 hands over the functions themselves: serve/openai/protocol.py, serve/core.
    tool = {"name": _PROBE, "description": "A probe.", "parameters": {"type": "object", "properties": {}}}
    render: Any = render_jinja_template
    try:
        rendered, _ = render(
            conversations=[[{"role": "user", "content": "Hi"}]],
            tools=[tool],
            chat_template=template,
            add_generation_prompt=True,
            **_special_tokens(folder),
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UsageError(
            f"the chat template of {folder} cannot be rendered with tools: {error}",
            why="it is broken, or it refuses tools",
            todo="correct its chat_template.jinja, or serve without tools: --tool-call-parser none",
        ) from error
    if _PROBE not in rendered[0]:
        raise UsageError(
            f"the chat template of {folder} does not show tools to the model",
            why="it never mentions `tools`, so a request's tools would be dropped without a word",
            todo="put a chat_template.jinja that renders tools into the folder, or serve without tools: "
            "--tool-call-parser none",
        )


def chat_template(folder: Path) -> str | None:
    """The template that transformers takes for a conversation with tools, None if the folder has none."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    found = _json(folder / "chat_template.json").get("chat_template")
    found = found or _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("tool_use", named.get("default"))
    return found if isinstance(found, str) else None


def _special_tokens(folder: Path) -> dict[str, str]:
    config = _json(folder / "tokenizer_config.json")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    told = {name: config.get(name) for name in names}
    found = {name: token.get("content") if isinstance(token, dict) else token for name, token in told.items()}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"cannot read {file}: {error}", todo="download the model again") from error
    return content if isinstance(content, dict) else {}
