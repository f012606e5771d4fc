"""A submitted folder as the subject: its model is inspected and served, its scripts are run against it and watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lab3.collect import kv_bytes_by_bits
from lab3.errors import InfraError, UsageError
from lab3.evidence import (
    ChatFacts,
    NonceFacts,
    QuantizationFacts,
    ScriptFacts,
    ScriptRun,
    ServerFacts,
    StructureFacts,
    ToolFacts,
)
from lab3.grading import live
from lab3.grading.collector import Collected, collect
from lab3.grading.live import ATTEMPTS, Role, Watched
from lab3.grading.sandbox_types import Limits
from lab3.grading.wire import first_tool_request
from lab3.hub import ServerSpec
from lab3.models import model_tensors, read_config, resolve
from lab3.quantize import folder_bytes, predict_weight_bytes
from lab3.structure import inspect_structure
from lab3.subject import NeedsReview, NotShown, ServedSubject
from lab3.vram_predict import predict_model_bytes

LIMITS = Limits(wall_s=180.0, cpu_s=60)
NONCES, MORE_NONCES = 5, 20  # asked of all, and where one of them is wrong


@dataclass
class Submission(ServedSubject):
    """The folder `model`. `source` (a name, a path or a hub id) is the model that it was quantized from, if known.

    `fallback` gives a W4A16 folder for a submission that brings none, so that its scripts can be run. `seed_name` makes
    the seeds: the same for the same submission. Models that a serve command names are looked for in `model_roots`.
    """

    source: str | None = None
    fallback: Callable[[], Path] | None = None
    seed_name: str = ""
    limits: Limits = LIMITS
    model_roots: tuple[Path, ...] = ()
    same_model: Callable[[Path], Path] = field(default=lambda folder: folder)  # one folder for equal contents
    shares_server: bool = False  # with others: then of its command only the bits of the KV cache are served

    def __post_init__(self) -> None:
        self.name = "submission"
        self.mistakes = "subject"

    @cached_property
    def collected(self) -> Collected:
        """What was found in the folder, and why."""
        return collect(Path(self.model), model_roots=self.model_roots)

    def handed_in(self) -> Path:
        """The quantized model. Raises NotShown if there is none."""
        folder = self.collected.pick("model")
        if folder is None:
            raise NotShown("no quantized model was handed in")
        return folder

    def w4a16(self) -> Path:
        """The model that its server serves: its own, or the grader's."""
        folder = self.collected.pick("model")
        if folder is not None:
            return self.same_model(folder)
        if self.fallback is None:
            raise NotShown("no quantized model was handed in, and the grader has none in its place")
        return self.fallback()

    def spec(self, *, kv_bits: int | None = None) -> ServerSpec:
        """The server that the student's command asks for; the lab's, where there is none or lab3 does not start it."""
        from lab3.grading.serve_command import server_spec

        lab = super().spec(kv_bits=4)
        command = self.collected.serve
        if command is not None:
            try:
                asked = server_spec(command, model_folder=Path(lab.model))
            except UsageError:
                asked = lab
            if self.shares_server:
                asked = replace(lab, kv_bits=asked.kv_bits)
            lab = replace(asked, engine=self.engine if self.engine != "auto" else asked.engine)
        return lab if kv_bits is None else replace(lab, kv_bits=kv_bits)

    # --- the model and its server -------------------------------------------------------------------------------------

    def quantization(self) -> QuantizationFacts:
        """Sizes; what the folder was before is measured if the source is known, and else predicted from its shape."""
        folder = self.handed_in()
        config, source = read_config(folder), self._source()
        told = config.quantization or {}
        group_size = told.get("group_size")
        before = _weight_bytes(source) if source else predict_model_bytes(replace(config, quantization=None))
        return QuantizationFacts(
            method=told.get("quant_method"),
            bits=told.get("bits"),
            group_size=group_size,
            weight_bytes_before=before,
            weight_bytes_after=_weight_bytes(folder),
            predicted_weight_bytes=predict_weight_bytes(
                config, group_size=group_size if isinstance(group_size, int) and group_size > 0 else 128
            ),
            folder_bytes_before=folder_bytes(source) if source else before,
            folder_bytes_after=folder_bytes(folder),
            perplexity_before=None,
            perplexity_after=None,
            perplexity_kv_int4=None,
            kv_int4_key_errors=(),
            kv_bytes_per_token=kv_bytes_by_bits(config),
            seconds=0.0,
        )

    def structure(self) -> StructureFacts:
        """Compared with the source's tensors if it is known."""
        return inspect_structure(self.handed_in(), source=self._source())

    def quantized(self) -> ServerFacts:
        """The server of the student's command. A command that does not work as it is written is a fault."""
        command = self.collected.serve
        if command is None:
            raise NotShown("no command that starts a server was handed in")
        if broken := [problem for problem in command.problems if problem.severity in ("broken", "unusable")]:
            raise UsageError(
                f"the serve command does not work: {'; '.join(map(str, broken))}",
                why=command.text[:500],
                todo="write it as LMDeploy takes it",
            )
        if not self.shares_server:
            return self._measured(self.spec(), keep=True)
        return ServerFacts(
            command=command.text,
            engine=self.spec().engine,
            kv_bits=self.spec().kv_bits,
            cache_ratio=command.cache_ratio,
            startup_seconds=0.0,
            used_mib=0,
            total_mib=0,
            memory_method="not measured: it shares a server with others",
            kv_tokens=None,
        )

    # --- the scripts --------------------------------------------------------------------------------------------------

    def scripts(self) -> tuple[ScriptFacts, ...]:
        """Each script that was handed in, and how it ran."""
        found = []
        for role in ("chat", "tools"):
            if (script := self._script(role)) is not None:
                runs = tuple(run for run, _ in self._runs(role))
                found.append(replace(script, runs=runs))
        if not found:
            raise NotShown("no script that asks a model was handed in")
        return tuple(found)

    def chat(self) -> ChatFacts:
        """The conversation of the chat script, as it went over the wire."""
        return live.chat_of(self._best("chat"))

    def tools(self) -> tuple[ToolFacts, ...]:
        """What the function script asked and got, as it went over the wire, in its best run."""
        best = self._best("tools")
        found = live.tools_of(best)
        if not found and any(question.tools and question.calls for question in best.wire.questions):
            asked = next(question.text for question in best.wire.questions if question.tools and question.calls)
            raise NeedsReview(f"lab3 cannot tell which calls {asked[:200]!r} needs: it holds no expression")
        return found or (_not_asked(best),)

    def nonce(self) -> NonceFacts:
        """The grader's questions by the script's own tools."""
        request = first_tool_request(self._best("tools").turns)
        if request is None or not live.offers_add(request):
            raise NotShown("the script offered no tools that add, so there is nothing to ask with")
        asked: dict[str, Any] = request
        with self._talking() as wire:
            from lab3.openai_client import open_client

            with open_client(wire["base_url"], timeout_s=120.0) as client:

                def ask(body: dict[str, Any]) -> dict[str, Any]:
                    return live.message_of(client, {**body, "model": wire["model"], "max_tokens": 128})

                seed = live.seed_of(self.seed_name, 0)
                found = live.nonce(asked, ask=ask, seed=seed, count=NONCES)
                if found.right < NONCES:
                    found = live.nonce(asked, ask=ask, seed=seed, count=MORE_NONCES)
        return found

    def _best(self, role: Role) -> Watched:
        if self._script(role) is None:
            raise NotShown(
                f"no script that asks a model {'with tools' if role == 'tools' else 'for a chat'} was handed in"
            )
        runs = self._runs(role)
        good = next((watched for run, watched in runs if run.right), None)
        if good is not None:
            return good
        if all(run.server_trouble for run, _ in runs):
            raise InfraError(
                f"the {role} script met trouble of the server's: {runs[-1][0].server_trouble[0]}",
                why="that is no fault of the script",
                todo="grade it again",
                kind="server_trouble",
            )
        return next(watched for run, watched in runs if not run.server_trouble)

    def _script(self, role: Role) -> ScriptFacts | None:
        found = next((each for each in self.collected.found if each.role == role), None)
        if found is None:
            return None
        path = str(found.path.relative_to(self.collected.folder))
        return ScriptFacts(path=path, role=role, why=found.why)

    def _runs(self, role: Role) -> list[tuple[ScriptRun, Watched]]:
        """The script's runs: one, and more where its calls did not come right although it asked for them."""
        return self.member.once(f"runs of {role}", lambda: self._run(role))

    def _run(self, role: Role) -> list[tuple[ScriptRun, Watched]]:
        script = self.collected.pick(role)
        runs: list[tuple[ScriptRun, Watched]] = []
        with self._watched(self.spec()) as server:
            while script is not None:
                attempt = len(runs) + 1
                self.progress(f"{self.seed_name}: running {script.name}" + (f" again ({attempt})" if runs else ""))
                watched = live.watch(
                    script,
                    self.collected,
                    role,
                    upstream=server.base_url.removesuffix("/v1"),
                    model=server.model_name,
                    seed=live.seed_of(self.seed_name, attempt),
                    limits=self.limits,
                )
                runs.append((live.run_of(watched, role, attempt), watched))
                if attempt >= ATTEMPTS or not _worth_another(runs[-1], role):
                    break
        return runs

    def _source(self) -> Path | None:
        if self.source is None:
            return None
        source = self.source
        return self.member.once("shared source model", lambda: resolve(source, progress=self.progress))

    def _lacking(self, what: str) -> str:
        return f"the folder does not show {what}"


def _worth_another(last: tuple[ScriptRun, Watched], role: Role) -> bool:
    """Whether chance, or the server, may have been in the way: what a script does by itself it does again."""
    run, watched = last
    if run.right or run.outcome not in ("exited", "signal"):
        return bool(run.server_trouble)
    missed = any(map(live.model_missed, watched.wire.questions))
    return bool(run.server_trouble) or (role == "tools" and missed)


def _not_asked(watched: Watched) -> ToolFacts:
    """A script that asked nothing that needs a call."""
    from lab3.collect import TOOL_ANSWER, TOOL_CALLS, TOOL_QUESTION

    asked = "it asked the model without tools" if watched.wire.asked else "it asked the model nothing"
    if watched.wire.asked_with_tools:
        asked = "it asked with tools, and no calculation"
    return ToolFacts(
        question=watched.wire.questions[0].text if watched.wire.questions else TOOL_QUESTION,
        expected=TOOL_CALLS,
        expected_answer=TOOL_ANSWER,
        tool_choice="none",
        calls=(),
        results_returned=False,
        answer="",
        outcome=f"not asked: {asked}",
    )


def _weight_bytes(folder: Path) -> int:
    return sum(tensor.size_bytes for tensor in model_tensors(folder))
