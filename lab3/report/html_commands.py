"""What to type to do a run's steps again, as the evidence tells it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from lab3.evidence import Evidence, ServerFacts

_HERE = "http://127.0.0.1:23333/v1"  # where `lab3 serve` listens


@dataclass(frozen=True)
class Command:
    """`name` is a word of lab3.report.html_words; `lines` are for a shell."""

    name: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def commands(evidence: Evidence) -> list[Command]:
    """The steps that can be done again, in the lab's order. The servers' own commands are as they were run."""
    found = []
    model = shlex.quote(evidence.model)
    if evidence.subject == "reference":
        found.append(Command("whole_lab", (f"lab3 run --model {model} --out lab3-out{_engine(evidence)}",)))
        if evidence.quantization is not None:
            folder = model_folder(evidence.quantized) if evidence.quantized else ""
            out = f"{shlex.quote(folder)} --overwrite" if folder else "model-w4a16"
            found.append(Command("quantize_step", (f"lab3 quantize {model} --out {out}",)))
    if evidence.baseline is not None:
        found.append(Command("first_server", (evidence.baseline.command,)))
    if evidence.quantized is not None:
        found.append(Command("second_server", (evidence.quantized.command,)))
    base_url = asked_at(evidence)
    if evidence.chat is not None:
        found.append(Command("conversation", (ask("chat", evidence.chat.question, base_url, more="--stream "),)))
    if evidence.tools:
        asked = tuple(ask("funcall", each.question, base_url, more="--seed 0 ") for each in evidence.tools)
        found.append(Command("calls", asked))
    return found


def ask(command: str, question: str, base_url: str, *, more: str = "") -> str:
    """`lab3 chat` or `lab3 funcall` with the question."""
    where = f"--base-url {shlex.quote(base_url)}"
    return f"lab3 {command} {shlex.quote(question)} {where} {more}--temperature 0 --max-tokens 128"


def asked_at(evidence: Evidence) -> str:
    """The base URL of the server that was asked, or of one that is started with the quantized one's command."""
    if evidence.subject == "server":
        return evidence.model
    words = _words(evidence.quantized) if evidence.quantized is not None else []
    port = words[words.index("--server-port") + 1 :][:1] if "--server-port" in words else []
    return f"http://127.0.0.1:{port[0]}/v1" if port else _HERE


def model_folder(server: ServerFacts) -> str:
    """The folder that a server's command names, "" if it names none."""
    words = _words(server)
    after = words[words.index("api_server") + 1 :] if "api_server" in words else []
    return after[0] if after and not after[0].startswith("-") else ""


def _words(server: ServerFacts) -> list[str]:
    try:
        return shlex.split(server.command)
    except ValueError:
        return []


def _engine(evidence: Evidence) -> str:
    server = evidence.quantized or evidence.baseline
    return f" --engine {shlex.quote(server.engine)}" if server is not None else ""
