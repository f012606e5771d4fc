"""The Evidence record: the facts of one lab, gathered by a collector and judged by nobody yet.

A section that is None was not shown; `trouble` says why when that was not the subject's fault.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lab3.protocol_facts import ProtocolFacts

SHARED = "evidence of "  # begins the names by which the processes of a run share sections

# Whose trouble it is. "subject": what is judged is broken; "not_shown": there is nothing to read it from.
Fault = Literal["machine", "subject", "unknown", "not_shown"]


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a section of the evidence is missing."""

    fault: Fault
    kind: str  # of a diagnosis, such as "gpu_memory"
    text: str  # what happened, why, what to do
    command: str = ""  # that shows it again
    log_tail: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.text, *([f"  to reproduce: {self.command}"] if self.command else [])]
        return "\n".join([*lines, *(f"    | {line}" for line in self.log_tail)])


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A server as it was started and measured. Memory in MiB, at its peak while it was used."""

    command: str
    engine: str
    kv_bits: int
    cache_ratio: float
    startup_seconds: float
    used_mib: int
    total_mib: int
    memory_method: str
    kv_tokens: int | None  # tokens that the KV cache holds, as the server itself tells
    foreign_mib: int = 0  # of `used_mib`: what others held of the card before the server started


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """A server's memory over time, from before its start; thinned, but the highest of each span is there."""

    kv_bits: int  # this and the next tell which server it is
    cache_ratio: float
    total_mib: int
    method: str
    points: tuple[tuple[float, int, str], ...]  # seconds, MiB, and "start", "ready", "chat", "tools", "stopped" or ""


@dataclass(frozen=True, kw_only=True)
class QuantizationFacts:
    """The model folder before and after. Weight bytes are those of the tensors, folder bytes as `du` counts."""

    method: str | None  # quant_method of the folder's config.json
    bits: int | None
    group_size: int | None
    weight_bytes_before: int
    weight_bytes_after: int
    predicted_weight_bytes: int
    folder_bytes_before: int
    folder_bytes_after: int
    perplexity_before: float | None
    perplexity_after: float | None
    perplexity_kv_int4: float | None  # and with keys and values through an int4 cache
    kv_int4_key_errors: tuple[float, ...]  # for each layer, as lab3.kv_quality.KVQuality tells
    kv_bytes_per_token: dict[str, int]  # KV bits ("16", "8", "4") → bytes, from the model's shape
    seconds: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerSample:
    """A linear layer's unpacked weights next to the source model's (`lab3.structure._explain` tells how)."""

    name: str
    rows: int  # compared
    of_rows: int
    residual: float  # quantization steps, the worst row's or column's root mean square
    step_error: float  # the worst group's step next to the one that the source's weights need: 0.1 is 10% off


@dataclass(frozen=True, kw_only=True)
class StructureFacts:
    """What the quantized folder's files hold, read from headers and tensors."""

    layers_expected: int  # linear layers of the decoder, by config.json
    layers_packed: int  # of these, in 4 bits with scales and zeros, of the right shapes and types
    layers_plain: int  # matrices of decoder layers still in 16 or 32 bits
    group_size_found: int | None  # inputs that share a scale; None if layers differ or none is packed
    group_size_configured: int | None
    sample: tuple[LayerSample, ...]
    residual_bound: float  # what rounding to 4 bits with these groups explains
    step_bound: float
    not_compared: str | None  # why there is no sample
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ChatFacts:
    """One answered question. Times in seconds; None where the server did not tell."""

    question: str
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    ttft_s: float | None
    tokens_per_second: float | None
    error: str | None = None  # what was wrong with the answer, if it was no good one
    other_question: str = ""
    other_text: str | None = None  # the answer to that
    usage_due: bool = True  # a stream tells its usage only if it is asked to


@dataclass(frozen=True, kw_only=True)
class CallFacts:
    """One tool call as it came over the wire, and what became of it (`outcome` of lab3.funcall.Call)."""

    id: str
    name: str
    arguments_json: str
    arguments: dict[str, Any] | None
    outcome: str
    result: Any


@dataclass(frozen=True, kw_only=True)
class ExpectedCall:
    """A call that a question needs: `function` with `numbers`, in any order."""

    function: str
    numbers: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ToolFacts:
    """One question that needs calls, and what came of it."""

    question: str
    expected: tuple[ExpectedCall, ...]
    expected_answer: float
    tool_choice: str
    calls: tuple[CallFacts, ...]
    results_returned: bool | None  # a request with the results went back to the model; None: not the subject's doing
    answer: str
    outcome: str
    content: str = ""  # what the model said beside its calls, in the first round
    prompt_tokens: int | None = None  # of the first request
    prompt_tokens_without_tools: int | None = None  # of the same request without tools
    ends_with_call: bool = False  # a script computed the last call's result and asked no more, as the tutorial's does
    printed: bool | None = None  # then: whether it printed what that call gives; None: this was not watched


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """One question asked many times at a temperature, each time with another seed."""

    question: str
    temperature: float
    top_p: float
    outcomes: tuple[str, ...]  # "right", or what was wrong

    @property
    def right(self) -> int:
        """How often it was right."""
        return self.outcomes.count("right")


@dataclass(frozen=True, kw_only=True)
class ScriptRun:
    """One run of a student's script in the sandbox. Texts are printable, and are what the script claims."""

    attempt: int  # counted from 1
    outcome: str  # of lab3.grading.sandbox.Ran
    returncode: int | None
    stdout: str
    stderr: str
    wire: dict[str, Any]  # lab3.grading.wire_facts.WireFacts
    right: bool  # on the wire is what its task asks for
    server_trouble: tuple[str, ...]  # that was not the script's doing


@dataclass(frozen=True, kw_only=True)
class ScriptFacts:
    """A student's script, and its runs: more than one where the model's calls did not come right the first time."""

    path: str
    role: Literal["chat", "tools"]  # what it asks a server for
    why: str  # it was taken for that
    runs: tuple[ScriptRun, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NonceFacts:
    """The grader's own questions, with numbers that no student knows, asked with the tools that a script defines."""

    questions: tuple[str, ...]
    outcomes: tuple[str, ...]  # for each: "right", or what came instead

    @property
    def right(self) -> int:
        """How often the first call was the right one."""
        return self.outcomes.count("right")


@dataclass(frozen=True, kw_only=True)
class DiagnosisFacts:
    """What was looked at after a check failed."""

    command: str  # that starts the server
    log_tail: tuple[str, ...]
    right_by_kv_bits: dict[str, bool] = field(default_factory=dict)  # "4", "8", "16": asked again, until it was right


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known of one lab."""

    subject: str
    model: str
    environment: dict[str, str] = field(default_factory=dict)
    baseline: ServerFacts | None = None
    quantization: QuantizationFacts | None = None
    structure: StructureFacts | None = None
    quantized: ServerFacts | None = None
    chat: ChatFacts | None = None
    tools: tuple[ToolFacts, ...] = ()
    samples: SampleFacts | None = None
    protocol: ProtocolFacts | None = None
    diagnosis: DiagnosisFacts | None = None
    scripts: tuple[ScriptFacts, ...] = ()
    nonce: NonceFacts | None = None
    memory: tuple[MemoryFacts, ...] = ()  # of each server in turn
    trouble: dict[str, Trouble] = field(default_factory=dict)  # section → why it is missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; subject and environment stand beside the evidence in a report."""
        plain = asdict(self)
        for name in ("subject", "environment"):
            del plain[name]
        return plain
