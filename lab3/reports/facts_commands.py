"""Commands of the lab as they were seen, with the facts that checks ask for. What OCR did to them is borne with."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lab3.reports.facts_models import ModelName, model_name
from lab3.reports.model import CommandSeen, Place

CommandKind = Literal["quantize", "chat", "serve", "client", "web", "script", "copy", "other"]
DEFAULT_RATIO = 0.8  # LMDeploy's --cache-max-entry-count, from 0.2.6 to 0.18
DEFAULT_PORT = 23333
METHODS = {"auto_awq": "W4A16 by AWQ", "auto_gptq": "W4A16 by GPTQ", "smooth_quant": "W8A8", "kv_qparams": "KV"}

_DASHES = re.compile(r"^(?:[-\u2010-\u2015\u2212]\s?){1,2}(?=[a-z])")
_CUT = re.compile(r"(?:\\|>|…|\.\.\.)\s*$")
_PORT = re.compile(r":(\d{2,5})\b")


@dataclass(frozen=True, kw_only=True)
class LabCommand:
    """A command, and what it asks for; None and empty where it does not say.

    `cut`: its end is not seen, or a part cannot be read, so that what it does not say may stand there.
    """

    kind: CommandKind
    seen: CommandSeen
    order: int
    method: str = ""  # of quantization, e.g. auto_awq
    model: ModelName | None = None
    model_format: str = ""
    kv_policy: int | None = None
    ratio: float | None = None
    port: int | None = None
    w_bits: int | None = None
    group_size: int | None = None
    work_dir: str = ""
    arguments: tuple[str, ...] = ()
    cut: bool = False

    @property
    def place(self) -> Place:
        return self.seen.place

    @property
    def read(self) -> bool:
        """Whether it was read off a picture."""
        return self.seen.place.picture is not None


def lab_command(seen: CommandSeen, *, order: int) -> LabCommand:
    """What a command is."""
    words = tuple(_word(each) for each in seen.argv)
    at = next((n for n, word in enumerate(words) if _base(word) in ("lmdeploy", "lmdepoly", "1mdeploy")), None)
    if at is None:
        return LabCommand(kind=_other(words), seen=seen, order=order, arguments=words)
    rest = words[at + 1 :]
    kind, method, skip = _which(rest)
    flags, plain = _flags(_apart(rest[skip:]), read=seen.place.picture is not None)
    where = plain[0] if plain else flags.get("model-path", "")
    return LabCommand(
        kind=kind,
        seen=seen,
        order=order,
        method=method,
        model=model_name(where) if where and kind in ("quantize", "chat", "serve") else None,
        model_format=flags.get("model-format", "").lower(),
        kv_policy=_policy(flags.get("quant-policy")),
        ratio=_number(flags.get("cache-max-entry-count")),
        port=_whole(flags.get("server-port")) or _port_of(plain),
        w_bits=_whole(flags.get("w-bits")),
        group_size=_whole(flags.get("w-group-size")),
        work_dir=flags.get("work-dir", ""),
        arguments=words,
        cut=bool(_CUT.search(seen.text))
        or _dangles(rest)
        or _garbled(flags, plain, read=seen.place.picture is not None),
    )


_COMMANDS: dict[tuple[str, str], CommandKind] = {
    ("serve", "api_server"): "serve",
    ("serve", "api_client"): "client",
    ("serve", "gradio"): "web",
    ("lite", "auto_awq"): "quantize",
    ("lite", "auto_gptq"): "quantize",
    ("lite", "smooth_quant"): "quantize",
    ("lite", "kv_qparams"): "quantize",
}


def _which(words: Sequence[str]) -> tuple[CommandKind, str, int]:
    """(kind, the name of its method, how many words name it)."""
    first = words[0].lower() if words else ""
    second = re.sub(r"[\s-]", "_", words[1].lower()) if len(words) > 1 else ""
    if first == "chat":
        return "chat", "", 2 if second in ("turbomind", "torch", "hf") else 1
    for (group, name), kind in _COMMANDS.items():
        if first == group and second.replace("_", "") == name.replace("_", ""):
            return kind, name if kind == "quantize" else "", 2
    return "other", "", 1


_KNOWN = (
    "model-format", "quant-policy", "cache-max-entry-count", "server-port", "server-name", "w-bits", "w-group-size",
    "work-dir", "calib-dataset", "calib-samples", "calib-seqlen", "batch-size", "search-scale", "tp", "backend",
    "session-len", "model-name", "max-batch-size", "tool-call-parser", "chat-template", "model-path", "dtype",
)  # fmt: skip
_MORE_FLAGS = (
    "log-level", "trust-remote-code", "api-keys", "enable-prefix-caching", "allow-terminate-by-client", "ssl", "share",
    "cache-block-seq-len", "max-prefill-token-num", "revision", "download-dir", "device", "w-sym",
)  # fmt: skip
_RUN_IN = re.compile(rf"([\w.:/-]+?)-{{0,2}}({'|'.join(_KNOWN)})$", re.A)
_LETTERS = {name.replace("-", ""): name for name in _KNOWN}


def _flags(words: Sequence[str], *, read: bool) -> tuple[dict[str, str], list[str]]:
    """(values by flag, the words that belong to none). A space that OCR loses is put back: `--quant-policy4`."""
    flags: dict[str, str] = {}
    plain: list[str] = []
    waiting = ""
    for word in words:
        bare = _DASHES.sub("", word)
        if bare != word and (word.startswith("--") or len(bare) > 1 or not waiting):
            name, _, value = bare.partition("=")
            waiting, stuck = _known(name, read=read)
            if value or stuck:
                flags[waiting] = value or stuck
                waiting = ""
        elif waiting:
            flags[waiting] = word
            waiting = ""
        else:
            plain.append(word)
    return flags, [word for word in plain if word not in ("\\", ">", "")]


def _apart(words: Sequence[str]) -> list[str]:
    """Words that OCR ran into one another: `awq--quant-policy`, `awqquant-policy`."""
    found: list[str] = []
    for word in words:
        inside = None if word.startswith("-") else _RUN_IN.match(word)
        found += [inside[1], f"--{inside[2]}"] if inside else [word]
    return found


def _dangles(words: Sequence[str]) -> bool:
    """The last word is a flag that waits for its value."""
    return bool(words) and words[-1].startswith("-") and _known(_DASHES.sub("", words[-1]), read=True)[0] in _KNOWN


def _garbled(flags: dict[str, str], plain: Sequence[str], *, read: bool) -> bool:
    """OCR made something of a flag that LMDeploy does not know, or left a word over."""
    strange = [flag for flag in flags if flag not in _KNOWN and flag not in _MORE_FLAGS]
    formats = flags.get("model-format", "awq").lower() not in ("awq", "hf", "gptq", "llama", "fp8", "none")
    return read and (bool(strange) or formats or len(plain) > 1)


def _known(name: str, *, read: bool) -> tuple[str, str]:
    """(the flag, a value that sticks to it)."""
    letters = re.sub(r"[\s_-]", "", name.lower())
    if letters in _LETTERS:
        return _LETTERS[letters], ""
    for known, flag in _LETTERS.items():
        if letters.startswith(known) and re.fullmatch(r"[\d.]+", letters[len(known) :]):
            return flag, letters[len(known) :]
    near = difflib.get_close_matches(letters, _LETTERS, 1, cutoff=0.85) if read else []
    return (_LETTERS[near[0]] if near else name.replace("_", "-").lower()), ""


def _other(words: Sequence[str]) -> CommandKind:
    base = _base(words[0]) if words else ""
    if base.startswith("python") and any(word.endswith(".py") for word in words):
        return "script"
    return "copy" if base in ("mv", "cp", "ln", "rsync", "git", "modelscope", "huggingface-cli") else "other"


def _word(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().strip("'\"“”‘’`")


def _base(word: str) -> str:
    return word.replace("\\", "/").rsplit("/", 1)[-1].lower()


def _port_of(plain: Sequence[str]) -> int | None:
    match = next(
        (found for word in plain if "//" in word or "localhost" in word if (found := _PORT.search(word))), None
    )
    return int(match[1]) if match else None


def _policy(text: str | None) -> int | None:
    return {"0": 0, "4": 4, "8": 8, "int4": 4, "int8": 8, "none": 0}.get((text or "").lower())


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
