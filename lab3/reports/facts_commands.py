"""Commands of the lab as they were seen, with the facts that checks ask for. What OCR did to them is borne with."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lab3.grading.commands import QuantizeCommand, ServeCommand
from lab3.grading.problems import Problem
from lab3.reports.commands_lmdeploy import lmdeploy_command
from lab3.reports.facts_lab3 import Lab3Asked, lab3_asked
from lab3.reports.facts_models import ModelName, model_name
from lab3.reports.model import CommandSeen, Place

CommandKind = Literal["quantize", "chat", "serve", "client", "web", "script", "copy", "other"]
DEFAULT_RATIO = 0.8  # LMDeploy's --cache-max-entry-count, from 0.2.6 to 0.18
DEFAULT_PORT = 23333
METHODS = {"auto_awq": "W4A16 by AWQ", "auto_gptq": "W4A16 by GPTQ", "smooth_quant": "W8A8", "kv_qparams": "KV"}

_DASHES = re.compile(r"^(?:[-\u2010-\u2015\u2212]\s?){1,2}(?=[a-z])")
_TYPESET = re.compile(r"^-?[\u2010-\u2015\u2212]-?(?=[A-Za-z])")
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
    problems: tuple[Problem, ...] = ()  # what LMDeploy's own parser says of it, as it is written

    @property
    def place(self) -> Place:
        return self.seen.place

    @property
    def read(self) -> bool:
        """Whether it was read off a picture."""
        return self.seen.place.picture is not None

    @property
    def refused(self) -> str:
        """What LMDeploy, of whatever year, does not take of it; empty where it takes all."""
        return next((str(each) for each in self.problems if each.severity == "broken"), "")


def lab_command(seen: CommandSeen, *, order: int) -> LabCommand:
    """What a command is, by LMDeploy's own parser where it has one for it; flags of 2024 are right.

    Of what OCR read the words are put right before, and what the parser refuses then may be misread.
    """
    words = tuple(_word(each) for each in seen.argv)
    at = next((n for n, word in enumerate(words) if _base(word) in ("lmdeploy", "lmdepoly", "1mdeploy")), None)
    if at is None and (asked := lab3_asked(words)):
        return _of_lab3(asked, seen, words, order)
    if at is None:
        return LabCommand(kind=_other(words), seen=seen, order=order, arguments=words)
    rest = words[at + 1 :]
    kind, method, skip = _which(rest)
    read = seen.place.picture is not None
    flags, plain = _flags(_apart(rest[skip:]), read=read)
    where = plain[0] if plain else flags.get("model-path", "")
    found = LabCommand(
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
        cut=bool(_CUT.search(seen.text)) or _dangles(rest) or (read and _garbled(flags, plain)),
    )
    if kind not in ("serve", "chat") and method != "auto_awq":
        return replace(found, cut=found.cut or (read and _strange(flags)))
    typed = ("lmdeploy", *_NAMES[kind], *_put_right(flags, plain)) if read else words[at:]
    return _asked(found, replace(seen, argv=typed))


def _of_lab3(asked: Lab3Asked, seen: CommandSeen, words: tuple[str, ...], order: int) -> LabCommand:
    return LabCommand(
        kind=asked.kind,
        seen=seen,
        order=order,
        method="auto_awq" if asked.kind == "quantize" else "",
        model=model_name(asked.model) if asked.model else None,
        kv_policy=asked.kv_policy,
        ratio=asked.ratio,
        port=asked.port,
        w_bits=asked.w_bits,
        group_size=asked.group_size,
        work_dir=asked.work_dir,
        arguments=words,
        cut=bool(_CUT.search(seen.text)),
    )


_NAMES = {"serve": ("serve", "api_server"), "chat": ("chat",), "quantize": ("lite", "auto_awq")}
_POLICIES = {16: 0, 8: 8, 4: 4}


def _asked(found: LabCommand, seen: CommandSeen) -> LabCommand:
    """The same with what LMDeploy's parser makes of it."""
    told = lmdeploy_command(seen)
    if told is None or (not told.given and not told.model):
        return found
    given = frozenset(told.given)
    read = found.read
    named = told.model or ("" if any(each.kind == "variable" for each in told.problems) else None)
    common = replace(
        found,
        model=found.model if named is None else model_name(named) if named else None,
        problems=told.problems,
        cut=found.cut or any(each.severity == "broken" and (read or each.kind in _UNKNOWN) for each in told.problems),
    )
    if isinstance(told, QuantizeCommand):
        return replace(
            common,
            w_bits=told.w_bits if "--w-bits" in given else None,
            group_size=told.group_size if "--w-group-size" in given else None,
            work_dir=told.work_dir if "--work-dir" in given else "",
        )
    return replace(
        common,
        model_format=(told.model_format or "").lower(),
        kv_policy=_POLICIES.get(told.kv_bits or 0) if "--quant-policy" in given else None,
        ratio=told.cache_ratio if "--cache-max-entry-count" in given else None,
        port=told.port if isinstance(told, ServeCommand) and "--server-port" in given else found.port,
    )


_UNKNOWN = ("value", "refused")  # problems after which it is not known what was asked for


def _put_right(flags: dict[str, str], plain: Sequence[str]) -> Iterator[str]:
    """The words of a command as one types them, from what OCR made of it."""
    yield from plain
    for flag, value in flags.items():
        yield f"--{flag}"
        yield value.replace(",", ".") if flag == "cache-max-entry-count" else value


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
_FORMATS = ("awq", "hf", "gptq", "llama", "fp8", "none")
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


def _garbled(flags: dict[str, str], plain: Sequence[str]) -> bool:
    """OCR made something of the model's format that there is not, or left a word over."""
    return flags.get("model-format", "awq").lower() not in _FORMATS or len(plain) > 1


def _strange(flags: dict[str, str]) -> bool:
    """OCR made something of a flag that is not known here."""
    return any(flag not in _KNOWN and flag not in _MORE_FLAGS for flag in flags)


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
    """A word without quotes, with the dashes that a word processor made of a flag's as they are typed."""
    text = unicodedata.normalize("NFKC", text).strip().strip("'\"“”‘’`")
    dashes = _TYPESET.match(text)
    return f"{'-' if len(text) - dashes.end() == 1 else '--'}{text[dashes.end() :]}" if dashes else text


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
