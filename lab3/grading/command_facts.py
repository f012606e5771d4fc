"""From the words of an LMDeploy command to what the student asked for, and what lab3 does not do of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab3.grading import lmdeploy_cli
from lab3.grading.commands import LmdeployCommand, QuantizeCommand, ServeCommand
from lab3.grading.lmdeploy_arguments import Understood, understand
from lab3.grading.problems import Problem, Severity, shown
from lab3.grading.shell_words import Word

_PORT = 23333  # LMDeploy's own
_KV_BITS = {0: 16, 8: 8, 4: 4}  # LMDeploy's --quant-policy → bits of a number in the KV cache
_TAKEN = frozenset(
    {
        "--quant-policy",
        "--cache-max-entry-count",
        "--session-len",
        "--max-batch-size",
        "--tool-call-parser",
        "--backend",
    }
    | {"--model-format", "--dtype", "--model-name", "--server-name", "--server-port", "--log-level"}
)
# They change what the model answers, or are read from somewhere else.
_NEVER = ("--adapters", "--hf-overrides", "--speculative", "--rope-scaling-factor", "--empty-init", "--role")
_REASONS = {
    "--trust-remote-code": "code of a checkpoint is never run",
    "--chat-template": "the model is asked by its own folder's template",
    "--proxy-url": "the server talks to nobody else",
    "--api-keys": "the server is lab3's own",
    "--ssl": "the server is lab3's own",
}
_MOST = {"--session-len": 1 << 20, "--max-batch-size": 4096}


def serve(command: LmdeployCommand, words: Sequence[Word]) -> ServeCommand:
    """The facts of `lmdeploy serve api_server`, whose arguments are `words`."""
    known = understand("api_server", words, source=command.source)
    values = known.values
    told = _Told(command, known.given)
    ratio, port = values.get("cache_max_entry_count", 0.8), values.get("server_port") or _PORT
    parser = values.get("tool_call_parser")
    if not 0 < ratio < 1:
        told.add(
            "value",
            "unusable",
            "--cache-max-entry-count is a share of the free memory: more than 0, less than 1",
            f"--cache-max-entry-count {ratio:g}",
        )
    if not 0 < port < 1 << 16:
        told.add("value", "broken", "there is no such port", f"--server-port {port}")
        port = _PORT
    if parser is not None and parser not in lmdeploy_cli.tool_parsers():
        what = f"--tool-call-parser takes one of {', '.join(lmdeploy_cli.tool_parsers())}"
        told.add("value", "broken", what, f"--tool-call-parser {parser}")
        parser = None
    kv_bits = _KV_BITS.get(values.get("quant_policy", 0))
    if kv_bits is None:
        told.add(
            "value",
            "unusable",
            "lab3 serves the KV policies 0, 8 and 4",
            f"--quant-policy {values.get('quant_policy')}",
        )
    sizes = {flag: _size(values, flag, told) for flag in _MOST}
    for flag in known.given:
        _allow(flag, values, told)
    return ServeCommand(
        **_common(command, known, told),
        model=values.get("model_path") if known.model_known else None,
        kv_bits=kv_bits,
        cache_ratio=ratio,
        port=port,
        host=values.get("server_name", "0.0.0.0"),
        engine=values.get("backend") if "--backend" in known.given else None,
        model_format=values.get("model_format"),
        model_name=values.get("model_name"),
        dtype=values.get("dtype", "auto"),
        session_len=sizes["--session-len"],
        max_batch_size=sizes["--max-batch-size"],
        tp=values.get("tp", 1),
        tool_call_parser=parser,
        chat_template=values.get("chat_template"),
        given=tuple(known.given),
    )


def quantize(command: LmdeployCommand, words: Sequence[Word]) -> QuantizeCommand:
    """The facts of `lmdeploy lite auto_awq`, whose arguments are `words`."""
    known = understand("auto_awq", words, source=command.source)
    values = known.values
    return QuantizeCommand(
        **_common(command, known, _Told(command, known.given)),
        model=values.get("model") if known.model_known else None,
        work_dir=values.get("work_dir", "./work_dir"),
        w_bits=values.get("w_bits", 4),
        group_size=values.get("w_group_size", 128),
        samples=values.get("calib_samples", 128),
        seqlen=values.get("calib_seqlen", 2048),
        batch_size=values.get("batch_size", 1),
        search_scale=values.get("search_scale", False),
        dataset=values.get("calib_dataset", "wikitext2"),
        given=tuple(known.given),
    )


class _Told:
    """Problems of one command, whose flags stand in these lines; a problem's text begins with its flag."""

    def __init__(self, command: LmdeployCommand, lines: dict[str, int]) -> None:
        self._command, self._lines = command, lines
        self.problems: list[Problem] = []

    def add(self, kind: str, severity: Severity, what: str, text: str = "") -> None:
        line = self._lines.get(text.split(" ")[0], self._command.line)
        source = self._command.source
        self.problems.append(
            Problem(kind=kind, severity=severity, what=what, source=source, line=line, text=shown(text))
        )


def _common(command: LmdeployCommand, known: Understood, told: _Told) -> dict[str, Any]:
    own = {name: getattr(command, name) for name in ("text", "source", "line", "argv", "launcher", "environment")}
    return {**own, "problems": (*command.problems, *known.problems, *told.problems)}


def _size(values: dict[str, Any], flag: str, told: _Told) -> int | None:
    value = values.get(flag.strip("-").replace("-", "_"))
    if value is None or 0 < value <= _MOST[flag]:
        return value
    told.add("value", "refused", f"{flag} is left out: it is not between 1 and {_MOST[flag]}", f"{flag} {value}")
    return None


def _allow(flag: str, values: dict[str, Any], told: _Told) -> None:
    if flag in _TAKEN or (flag in ("--tp", "--dp", "--ep", "--cp") and values.get(flag.strip("-"), 1) == 1):
        return
    value = values.get(flag.strip("-").replace("-", "_"))
    said = (
        flag if isinstance(value, bool) else f"{flag} {' '.join(map(str, value)) if isinstance(value, list) else value}"
    )
    if flag.startswith(_NEVER):
        told.add("flag", "unusable", "lab3 does not serve a model that is changed on the way", said)
    else:
        reason = _REASONS.get(flag, "one card, and lab3's own settings")
        told.add("flag", "refused", f"left out: {reason}", said)
