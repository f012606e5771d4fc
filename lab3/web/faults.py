"""What went wrong with a request, as a sentence for the chat: what happened and what to do, in the page's language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lab3.errors import Lab3Error, UsageError
from lab3.openai_client import excerpt
from lab3.web.words import Language, word

# LMDeploy 0.18, serve/core/async_engine.py: "Input length (9000) must be smaller than the model context length (8192)."
_TOO_LONG = re.compile(r"Input length \((\d+)\).*context length \((\d+)\)|context length|too long|exceeds? .*tokens")
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|No enough (gpu )?memory|free memory blocks", re.IGNORECASE)
_SAID_LIMIT = 300


@dataclass(frozen=True)
class Fault:
    """`key` is the sentence's in the page's words, without its `fault_`; `facts` fill its places."""

    key: str
    facts: Mapping[str, str] = field(default_factory=dict)

    def sentence(self, language: Language) -> str:
        """In the language. What the server said stands in quotes of code, so that no Markdown of it takes effect."""
        facts = dict(self.facts)
        if "asked" in facts:
            facts["numbers"] = word("numbers", language, asked=facts.pop("asked"), most=facts.pop("most"))
        if "said" in facts:
            facts["said"] = quoted(facts["said"])
        return word(f"fault_{self.key}", language, **facts)


def fault_of(error: Exception, url: str) -> Fault:
    """The fault that `error` of a request to the server at `url` tells of."""
    if not isinstance(error, Lab3Error):
        return Fault("other", {"said": excerpt(f"{type(error).__name__}: {error}", _SAID_LIMIT)})
    told = f"{error.what} {error.why}"
    if _OUT_OF_MEMORY.search(told):
        return Fault("out_of_memory")
    if match := _TOO_LONG.search(told):
        return Fault("too_long", {"asked": match[1], "most": match[2]} if match[1] else {"numbers": ""})
    if "--tool-call-parser" in told:
        return Fault("no_tool_parser")
    if error.kind == "network" and error.what.startswith("No server"):
        return Fault("down", {"url": url})
    if error.kind == "timeout":
        return Fault("timeout")
    if error.kind == "network" or "no finish_reason" in error.what:
        return Fault("broke_off")
    if error.kind == "api_key":
        return Fault("api_key")
    if error.kind == "not_an_api":
        return Fault("not_an_api", {"url": url})
    if isinstance(error, UsageError):
        if "does not serve that model" in error.what:
            return Fault("no_such_model")
        return Fault("refused", {"said": excerpt(error.what, _SAID_LIMIT)})
    return Fault("server_failed", {"said": excerpt(error.what, _SAID_LIMIT)})


def failed_answer(text: str) -> Fault:
    """The fault of an answer that LMDeploy ended with finish_reason "error"; `text` is what it said by then."""
    if _OUT_OF_MEMORY.search(text):
        return Fault("out_of_memory")
    return Fault("server_failed", {"said": excerpt(text.strip() or "finish_reason: error", _SAID_LIMIT)})


def quoted(text: str) -> str:
    """`text` as inline code of Markdown, whatever it holds."""
    plain = " ".join(text.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", plain)), default=0) + 1)
    return f"{fence} {plain} {fence}" if "`" in plain else f"{fence}{plain}{fence}"
