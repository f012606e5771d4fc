"""What was asked of a server and what it answered, as facts for the OpenAI protocol checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

# What a server and its model may promise. Checks of what is not declared are neither asked nor judged.
CAPABILITIES: dict[str, str] = {
    "stream": "answers as server-sent events with `stream`",
    "stream_usage": "ends a stream with the usage, if stream_options.include_usage asks for it",
    "max_completion_tokens": "takes `max_completion_tokens`, the newer name of `max_tokens`",
    "n": "gives `n` choices to one request",
    "stop": "ends the answer before a `stop` string that is a single token",
    "stop_strings": "ends the answer before any `stop` string, however it is cut into tokens",
    "tools": "calls a given function where the question needs it, by its own choice, and takes its results",
    "tool_choice_none": "makes no call with tool_choice none",
    "tool_choice_required": "makes a call that fits a given function's schema with tool_choice required",
    "tool_choice_named": "calls the function that tool_choice names, and refuses a name that no tool has",
    "parallel_calls": "makes two calls in one answer where the question needs two",
    "validates_requests": "refuses wrong types, values out of range and unknown models with an error that says so",
    "validates_roles": "refuses a message whose role the protocol does not know",
}
ALL_CAPABILITIES = frozenset(CAPABILITIES)

# LMDeploy 0.18, PyTorch engine, `--tool-call-parser internlm`, with lab3's embedded model.
LMDEPLOY_LACKS: dict[str, str] = {
    "stop_strings": "LMDeploy turns a stop string into token ids (Tokenizer.indexes_containing_token) and drops one "
    "that is several tokens, or that the model writes as part of a token, with no more than a line in its log",
    "tool_choice_named": "LMDeploy hides the other functions from the model but does not force a call, and answers as "
    "if without tools when no tool has the name",
    "parallel_calls": "the embedded model was trained to make one call a turn; LMDeploy's parser would take more",
    "validates_roles": "LMDeploy takes any role that the chat template renders",
}
LMDEPLOY_CAPABILITIES = ALL_CAPABILITIES - frozenset(LMDEPLOY_LACKS)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and what came of it. `status` is 0 and `content_type` "" if no answer began.

    `request` is the JSON that was sent: {} for a GET, {"raw": text} for what is no JSON, and overlong texts shortened.
    `body` is the parsed JSON of an unstreamed answer or an error, None if it was none; `events` are those of a stream,
    without its [DONE], which is `done`. `error` is trouble on the wire, in words.
    """

    request: dict[str, Any]
    status: int
    body: Any
    events: tuple[Any, ...]
    done: bool
    content_type: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ProtocolFacts:
    """All exchanges with one server, by the probe that they belong to."""

    model: str  # that was asked
    capabilities: tuple[str, ...]  # that were declared
    exchanges: dict[str, tuple[Exchange, ...]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values. Answers may hold lone surrogates, so let json.dumps escape what is not ASCII."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The facts again, after they were JSON."""
        exchanges = {
            name: tuple(Exchange(**{**each, "events": tuple(each["events"])}) for each in several)
            for name, several in plain["exchanges"].items()
        }
        return cls(model=plain["model"], capabilities=tuple(plain["capabilities"]), exchanges=exchanges)
