"""What is known of an LMDeploy command that a student wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab3.grading.problems import Problem


@dataclass(frozen=True, kw_only=True)
class LmdeployCommand:
    """`argv` begins with `lmdeploy`; `text` is how it is written, `launcher` what stands before it."""

    text: str
    source: str
    line: int
    argv: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def works(self) -> bool:
        """Whether a shell and LMDeploy 0.18 take it as it is written."""
        return not any(problem.severity in ("broken", "old") for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "works": self.works}


@dataclass(frozen=True, kw_only=True)
class ServeCommand(LmdeployCommand):
    """What the student asked for, with typing errors put right: `works` says whether there were any.

    What was not said has LMDeploy's own default. `kv_bits` None: a policy that lab3 does not know.
    """

    model: str | None
    kv_bits: int | None
    cache_ratio: float
    port: int
    host: str
    engine: Literal["turbomind", "pytorch"] | None
    model_format: str | None
    model_name: str | None
    dtype: str
    session_len: int | None
    max_batch_size: int | None
    tp: int
    tool_call_parser: str | None
    chat_template: str | None
    given: tuple[str, ...]  # the flags


@dataclass(frozen=True, kw_only=True)
class QuantizeCommand(LmdeployCommand):
    """A `lmdeploy lite auto_awq`, with LMDeploy's defaults for what was not said."""

    model: str | None
    work_dir: str
    w_bits: int
    group_size: int
    samples: int
    seqlen: int
    batch_size: int
    search_scale: bool
    dataset: str
    given: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Commands:
    """LMDeploy's commands in a text, in their order; `others` are chats, helpers and commands that are gone."""

    serve: tuple[ServeCommand, ...] = ()
    quantize: tuple[QuantizeCommand, ...] = ()
    others: tuple[LmdeployCommand, ...] = ()
    problems: tuple[Problem, ...] = ()

    def __add__(self, other: Commands) -> Commands:
        return Commands(
            serve=self.serve + other.serve,
            quantize=self.quantize + other.quantize,
            others=self.others + other.others,
            problems=self.problems + other.problems,
        )
