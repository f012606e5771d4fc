"""What is judged, and how each section of the evidence on it is gathered: once in a run, and only if a check needs it.

Three subjects: the reference (lab3 does the lab itself), a server that somebody else started, a submitted folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lab3 import collect
from lab3.diagnose import diagnose
from lab3.errors import InfraError, UsageError
from lab3.evidence import (
    SHARED,
    ChatFacts,
    DiagnosisFacts,
    Evidence,
    Fault,
    NonceFacts,
    QuantizationFacts,
    SampleFacts,
    ScriptFacts,
    ServerFacts,
    StructureFacts,
    ToolFacts,
    Trouble,
)
from lab3.hub import RunningServer, ServerSpec
from lab3.hub_wire import Member
from lab3.models import read_config, resolve
from lab3.progress import Progress, silent
from lab3.protocol_facts import LMDEPLOY_CAPABILITIES, ProtocolFacts
from lab3.quantize import QuantizeResult
from lab3.serve import ServerError
from lab3.serve_flags import Engine
from lab3.structure import inspect_structure

BASELINE_RATIO, QUANTIZED_RATIO = 0.8, 0.4
DEFAULT_SAMPLES = 20
LOG_LINES = 15

Quantize = Callable[[Path], QuantizeResult]


class NotShown(Exception):
    """There is nothing to read this from, with this subject."""

    kind = "not_shown"


class NeedsReview(NotShown):
    """There is something, and only a person can tell what it is worth."""

    kind = "needs_review"


@dataclass
class Subject(ABC):
    """The sections of the evidence are methods of their names; `evidence` gathers those that are asked for."""

    member: Member
    model: str
    samples_count: int = DEFAULT_SAMPLES
    capabilities: frozenset[str] = LMDEPLOY_CAPABILITIES
    progress: Progress = silent
    moment: Callable[[str], None] = lambda name: None  # told what is asked now: "chat" or "tools"
    name: str = field(init=False, default="")
    mistakes: Literal["user", "subject"] = field(init=False, default="user")  # whose a UsageError is

    def evidence(self, *sections: str) -> Evidence:
        """The evidence with these sections; what could not be gathered is missing, with the trouble that it had.

        Raises UsageError for what is the user's mistake and no fault of the subject.
        """
        found = Evidence(subject=self.name, model=self.model, environment=self.member.once("environment", _environment))
        for section in sections:
            try:
                gathered = self.member.once(SHARED + section, getattr(self, section))
            except NotShown as error:
                trouble = Trouble(fault="not_shown", kind=error.kind, text=str(error))
                found = replace(found, trouble={**found.trouble, section: trouble})
            except InfraError as error:
                found = replace(found, trouble={**found.trouble, section: trouble_of(error)})
            except UsageError as error:
                if self.mistakes == "user":
                    raise
                trouble = Trouble(fault="subject", kind="unusable", text=str(error))
                found = replace(found, trouble={**found.trouble, section: trouble})
            else:
                found = replace(found, **{section: gathered})
        return found

    def baseline(self) -> ServerFacts:
        """The unquantized model, served."""
        raise NotShown(self._lacking("how the unquantized model was served"))

    def quantization(self) -> QuantizationFacts:
        """The model folder before and after."""
        raise NotShown(self._lacking("the model folder"))

    def structure(self) -> StructureFacts:
        """What the quantized folder's tensors are."""
        raise NotShown(self._lacking("the model folder"))

    def quantized(self) -> ServerFacts:
        """The quantized model, served."""
        raise NotShown(self._lacking("how the server was started"))

    def chat(self) -> ChatFacts:
        """One conversation."""
        self.progress(collect.QUESTION)
        with self._talking() as wire:
            self.moment("chat")
            said = collect.ask_to_chat(**wire)
        self.progress(f"model: {said.text}")
        return said

    def tools(self) -> tuple[ToolFacts, ...]:
        """The question that takes both functions."""
        self.progress(collect.TOOL_QUESTION)
        with self._talking() as wire:
            self.moment("tools")
            asked = collect.ask_with_tools(**wire)
        for call in asked.calls:
            self.progress(f"call: {call.name}({call.arguments_json}) → {call.result}")
        self.progress(f"model: {asked.answer}")
        return (asked,)

    def samples(self) -> SampleFacts:
        """The same question, many times at the tutorial's temperature."""
        with self._talking() as wire:
            return collect.ask_often(self.samples_count, progress=self.progress, **wire)

    def protocol(self) -> ProtocolFacts:
        """All that the OpenAI protocol checks ask."""
        from lab3.protocol_probe import probe

        with self._talking() as wire:
            found = probe(capabilities=self.capabilities, progress=self.progress, **wire)
            if not any(each.status for several in found.exchanges.values() for each in several):
                why = next(each.error for each in found.exchanges["models"])
                raise InfraError(
                    f"No server answers at {wire['base_url']}",
                    why=why or "",
                    todo="see whether it runs",
                    kind="network",
                )
        return found

    def scripts(self) -> tuple[ScriptFacts, ...]:
        """The Python files that were handed in."""
        raise NotShown(self._lacking("scripts"))

    def nonce(self) -> NonceFacts:
        """The grader's own questions by the tools of a script that was handed in."""
        raise NotShown(self._lacking("scripts"))

    def diagnosis(self) -> DiagnosisFacts:
        """What tells whose fault a failed answer is."""
        raise NotShown(self._lacking("the server's log"))

    @abstractmethod
    def _talking(self) -> Any:
        """A context with what it takes to ask: base_url, api_key, model."""

    @abstractmethod
    def _lacking(self, what: str) -> str:
        """Why `what` is not shown."""


@dataclass
class ServedSubject(Subject):
    """A subject whose model lab3 serves itself."""

    engine: Engine | Literal["auto"] = "auto"

    @abstractmethod
    def w4a16(self) -> Path:
        """The quantized folder."""

    def spec(self, *, kv_bits: int = 4) -> ServerSpec:
        """The lab's server of the quantized model."""
        return ServerSpec(model=str(self.w4a16()), kv_bits=kv_bits, cache_ratio=QUANTIZED_RATIO, engine=self.engine)

    def diagnosis(self) -> DiagnosisFacts:
        """The log, and lab3's tool question by the server and by others with more bits for the KV cache, until it is
        answered right."""
        right: dict[str, bool] = {}
        spec = self.spec()
        with self.member.server(spec) as server:
            command, log = server.shell_command, log_tail(server)
        own = spec.kv_bits
        for bits in (own, *(more for more in (8, 16) if more > own)):
            self.progress(f"asking again with a KV cache of {bits} bits")
            with self._watched(replace(spec, kv_bits=bits), keep=bits == own) as again:
                right[str(bits)] = collect.ask_often(1, again.base_url, temperature=0.0).right == 1
            if right[str(bits)]:
                break  # a server with still more bits would tell nothing new
        return DiagnosisFacts(command=command, log_tail=log, right_by_kv_bits=right)

    def protocol(self) -> ProtocolFacts:
        """As of any server; where the machine took it down in the middle, that is the machine's trouble."""
        found = super().protocol()
        try:
            with self.member.server(self.spec()):
                pass
        except ServerError as error:  # what it died of; if it was what was asked, the last check tells
            if error.diagnosis.fault == "machine":
                raise
        return found

    @contextmanager
    def _talking(self) -> Iterator[dict[str, Any]]:
        with self._watched(self.spec()) as server:
            yield {"base_url": server.base_url, "model": server.model_name}

    @contextmanager
    def _watched(self, spec: ServerSpec, *, keep: bool = True) -> Iterator[RunningServer]:
        """The server; where it died, that is the error, and not the connection that broke."""
        with self.member.server(spec, keep=keep) as server:
            try:
                yield server
            except InfraError:
                self.member.peak(spec)
                raise

    def _measured(self, spec: ServerSpec, *, keep: bool) -> ServerFacts:
        """The server and its memory after it has answered once."""
        with self._watched(spec, keep=keep) as server:
            self.moment("chat")
            collect.ask_to_chat(server.base_url)
            return collect.server_facts(server, self.member.peak(spec))


@dataclass
class Reference(ServedSubject):
    """The lab as lab3 does it with `model` (a name, a path or a hub id); `quantize` makes the W4A16 folder of one."""

    quantize: Quantize | None = None

    def __post_init__(self) -> None:
        self.name = "reference"

    def folder(self) -> Path:
        """The model's folder."""
        return self.member.once("model folder", lambda: resolve(self.model, progress=self.progress))

    def w4a16(self) -> Path:
        """The quantized folder."""
        return self._made().out

    def baseline(self) -> ServerFacts:
        """The unquantized model with a 16-bit KV cache and most of the memory, as LMDeploy serves by default."""
        self.progress(f"serving the unquantized model, cache ratio {BASELINE_RATIO}")
        spec = ServerSpec(model=str(self.folder()), kv_bits=16, cache_ratio=BASELINE_RATIO, engine=self.engine)
        return self._measured(spec, keep=False)

    def quantization(self) -> QuantizationFacts:
        """Sizes and quality."""
        return collect.quantization_facts(self._made(), read_config(self.folder()))

    def structure(self) -> StructureFacts:
        """Compared with the source model's tensors."""
        made = self._made()
        self.progress("comparing the quantized weights with the source's")
        return inspect_structure(made.out, source=made.source)

    def quantized(self) -> ServerFacts:
        """W4A16, an int4 KV cache, less of the memory."""
        self.progress(f"serving the quantized model, int4 KV cache, cache ratio {QUANTIZED_RATIO}")
        return self._measured(self.spec(), keep=True)

    def _made(self) -> QuantizeResult:
        quantize = self.quantize
        if quantize is None:
            raise UsageError("the reference was given no way to quantize")
        return self.member.once("quantization", lambda: quantize(self.folder()))

    def _lacking(self, what: str) -> str:
        return f"lab3 did not show {what}"


@dataclass
class OtherServer(Subject):
    """A server that somebody else started: only what goes over the wire is known."""

    api_key: str = "none"

    def __post_init__(self) -> None:
        self.name = "server"

    @contextmanager
    def _talking(self) -> Iterator[dict[str, Any]]:
        yield {"base_url": self.model, "api_key": self.api_key}

    def _lacking(self, what: str) -> str:
        return f"needs more than the wire: a URL does not show {what}"


def trouble_of(error: InfraError) -> Trouble:
    """What an error says of whose trouble it is."""
    if not isinstance(error, ServerError):
        # What a child process or the system said is in the text, such as that the disk is full.
        known = diagnose(str(error), returncode=1)
        return Trouble(fault="machine", kind=error.kind or (known.kind if known.line else "machine"), text=str(error))
    found = error.diagnosis
    fault: Fault = "unknown" if found.fault == "unknown" else "machine" if found.fault == "machine" else "subject"
    text = "\n".join(
        [
            error.what,
            f"  why:        {error.why}",
            f"  what to do: {error.todo}",
            *([f"  recognised by: {found.line}"] if found.line else []),
        ]
    )
    return Trouble(
        fault=fault, kind=found.kind, text=text, command=error.command, log_tail=tuple(error.log_lines[-LOG_LINES:])
    )


def log_tail(server: RunningServer) -> tuple[str, ...]:
    """The last lines of its log that say something."""
    if server.log_path is None or not server.log_path.is_file():
        return ()
    lines = server.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line for line in lines if line.strip())[-LOG_LINES:]


def _environment() -> dict[str, str]:
    return collect.environment()
