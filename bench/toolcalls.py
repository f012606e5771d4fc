"""How often a model calls the right function with the right numbers, served by LMDeploy: accuracies on held-out cases.

    python -m bench.toolcalls [--model M] [--configs fp16-kv16,w4a16-kv8,w4a16-kv4] [--names lab] [--json]

Greedy on every configuration, and sampled on the last one. A call is right if its name and its arguments are exactly
the expected ones; a whole task, if all its calls are and the answer then names the number they come to.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.toolcall_cases import Case, ExpectedCall, Operation, held_out_cases
from lab3.checks import numbers_in
from lab3.collect import environment
from lab3.errors import Lab3Error
from lab3.funcall import Call, Tool, ToolRun, add, mul, run_tools
from lab3.models import resolve
from lab3.progress import Progress
from lab3.quantize import quantize
from lab3.report import write_report
from lab3.report.text import TerminalProgress
from lab3.serve import ApiServer

Names = Literal["held-out", "lab"]

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "w4a16": "auto"}
DEFAULT_CONFIGS = "fp16-kv16,w4a16-kv8,w4a16-kv4"
LAB_TOOLS: dict[Operation, Tool] = {"add": add, "mul": mul}
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.8}
MAX_TOKENS = 192
TIMEOUT_S = 600.0


class Config(NamedTuple):
    """A way to serve: the weights' format and the bits of a number in the KV cache."""

    weights: str
    kv_bits: int

    def __str__(self) -> str:
        return f"{self.weights}-kv{self.kv_bits}"


@dataclass(frozen=True)
class Share:
    """`count` out of `of`."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count}/{self.of} {self.count / self.of:.1%}" if self.of else "-"


@dataclass(frozen=True)
class Task:
    """A case with the functions really offered and the calls to expect of them."""

    case: Case
    tools: tuple[Tool, ...]
    expected: tuple[ExpectedCall, ...]


@dataclass(frozen=True)
class Score:
    """What became of a task. `right_calls`: all expected ones in their order and no other."""

    task: Task
    run: ToolRun
    first_call: bool
    right_calls: bool
    right_answer: bool

    @property
    def whole(self) -> bool:
        return self.right_calls and self.right_answer

    @property
    def called(self) -> bool:
        return bool(self.run.calls)

    @property
    def missed(self) -> bool:
        return not self.whole if self.task.expected else self.called

    def to_dict(self) -> dict[str, Any]:
        """The case, what was expected and what came."""
        case = self.task.case
        got = [{"name": call.name, "arguments": call.arguments_json} for call in self.run.calls]
        expected = [asdict(call) for call in self.task.expected]
        told = {"expected": expected, "got": got, "answer": case.answer, "said": self.run.answer}
        return {"id": case.id, "topic": case.topic, "question": case.question, "outcome": self.run.outcome, **told}


def task_of(case: Case, names: Names) -> Task:
    """The case with its own tools, or with the lab's functions `add` and `mul` in their places."""
    if names == "held-out":
        return Task(case, tuple(spec.function() for spec in case.tools), case.expected)
    tools = tuple(LAB_TOOLS[spec.operation] if spec.operation else spec.function() for spec in case.tools)
    lab_tools = {spec.name: LAB_TOOLS[spec.operation] for spec in case.tools if spec.operation}
    return Task(case, tools, tuple(_renamed(call, lab_tools[call.name]) for call in case.expected))


def _renamed(call: ExpectedCall, tool: Tool) -> ExpectedCall:
    names = inspect.signature(tool).parameters
    return ExpectedCall(tool.__name__, dict(zip(names, call.arguments.values(), strict=True)))


# --- scoring ------------------------------------------------------------------------------------------------------


def score(task: Task, run: ToolRun) -> Score:
    """Compare a run with what its task expects."""
    calls, expected, answer = run.calls, task.expected, task.case.answer
    right = [_is_right(call, wanted) for call, wanted in zip(calls, expected, strict=False)]
    return Score(
        task,
        run,
        first_call=bool(right) and right[0],
        right_calls=len(calls) == len(expected) and all(right),
        right_answer=answer is not None
        and any(math.isclose(number, answer, rel_tol=1e-9) for number in numbers_in(run.answer)),
    )


def _is_right(call: Call, wanted: ExpectedCall) -> bool:
    return call.outcome == "ok" and call.name == wanted.name and call.arguments == wanted.arguments


def shares(scores: Sequence[Score]) -> dict[str, Share]:
    """The table's rows, without those that no case belongs to."""
    calling = [each for each in scores if each.task.expected]
    silent = [each for each in scores if not each.task.expected]
    rows = {"first call": _share(calling, lambda each: each.first_call)}
    for field in ("kind", "language", "topic"):
        for value, group in _groups(calling, field).items():
            rows[f"first call, {value}"] = _share(group, lambda each: each.first_call)
    for value, group in _groups(calling, "kind").items():
        rows[f"whole task, {value}"] = _share(group, lambda each: each.whole)
    rows["false calls"] = _share(silent, lambda each: each.called)
    for value, group in _groups(silent, "topic").items():
        rows[f"false calls, {value}"] = _share(group, lambda each: each.called)
    return rows


def sampled_shares(scores: Sequence[Score]) -> dict[str, Share]:
    """The rows of the sampled runs."""
    return {
        "sampled: first call": _share(scores, lambda each: each.first_call),
        "sampled: whole task": _share(scores, lambda each: each.whole),
    }


def _share(scores: Sequence[Score], passes: Callable[[Score], bool]) -> Share:
    return Share(sum(map(passes, scores)), len(scores))


def _groups(scores: Iterable[Score], field: str) -> dict[str, list[Score]]:
    groups: dict[str, list[Score]] = {}
    for each in scores:
        groups.setdefault(getattr(each.task.case, field), []).append(each)
    return dict(sorted(groups.items()))


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(
    server: ApiServer, tasks: Iterable[tuple[Task, dict[str, Any]]], *, label: str, threads: int, progress: Progress
) -> list[Score]:
    """Ask every task with its sampling parameters, `threads` at a time."""

    def ask(job: tuple[Task, dict[str, Any]]) -> Score:
        task, sampling = job
        run = run_tools(
            task.case.question,
            task.tools,
            base_url=server.base_url,
            model=server.model_name,
            tool_choice="auto",
            max_tokens=MAX_TOKENS,
            timeout_s=TIMEOUT_S,
            **sampling,
        )
        return score(task, run)

    jobs = list(tasks)
    scores: list[Score] = []
    with ThreadPoolExecutor(threads) as pool:
        for each in pool.map(ask, jobs):
            scores.append(each)
            progress(label, done=len(scores), total=len(jobs))
    return scores


def bench(
    arguments: argparse.Namespace, progress: Progress, keep: Callable[[dict[str, Any]], None] = lambda report: None
) -> dict[str, Any]:
    """Serve every configuration and ask; the report as JSON-ready values.

    `keep` gets the report of the configurations so far after each of them: what was measured outlives an interruption.
    """
    tasks = [task_of(case, arguments.names) for case in held_out_cases(arguments.cases)]
    sampled = [task for task in tasks if task.expected][: arguments.sampled_cases]
    jobs = [(task, _sampling(task, sample)) for task in sampled for sample in range(arguments.samples)]
    configs: list[Config] = arguments.configs
    found: dict[str, Any] = {}
    report = {
        "model": arguments.model,
        "names": arguments.names,
        "cases": len(tasks),
        "sampling": {"cases": len(sampled), "samples": arguments.samples, **SAMPLED},
        "environment": environment(),
        "configs": found,
    }
    with ExitStack() as stack:
        folders = _folders(arguments, stack, progress)
        for number, config in enumerate(configs, 1):
            with ApiServer(
                folders["w4a16" if config.weights == "w4a16" else "plain"],
                kv_bits=config.kv_bits,
                engine=arguments.engine,
                dtype=DTYPES[config.weights],
                cache_ratio=arguments.cache_ratio,
                tool_call_parser="internlm",
            ) as server:
                common: dict[str, Any] = {"threads": arguments.concurrency, "progress": progress}
                scores = measure(server, [(task, GREEDY) for task in tasks], label=f"{config}: asking", **common)
                rows = shares(scores)
                if number == len(configs) and jobs:
                    rows |= sampled_shares(measure(server, jobs, label=f"{config}: sampling", **common))
                found[str(config)] = {
                    "engine": server.engine,
                    "rows": {name: asdict(row) for name, row in rows.items()},
                    "outcomes": Counter(each.run.outcome for each in scores),
                    "misses": [each.to_dict() for each in scores if each.missed][: arguments.show],
                }
            keep(report)
    return report


def _sampling(task: Task, sample: int) -> dict[str, Any]:
    return SAMPLED | {"seed": zlib.crc32(f"{task.case.id} {sample}".encode())}


def _folders(arguments: argparse.Namespace, stack: ExitStack, progress: Progress) -> dict[str, Path]:
    """The model folders that the configurations need; what is quantized here goes with `stack`."""
    weights = {config.weights for config in arguments.configs}
    quantized: str | None = arguments.quantized
    folders: dict[str, Path] = {}
    if weights - {"w4a16"} or quantized is None:
        folders["plain"] = resolve(arguments.model, progress=progress)
    if quantized is not None:
        folders["w4a16"] = resolve(quantized)
    elif "w4a16" in weights:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = folders["plain"]
        folders["w4a16"] = quantize(model, scratch / f"{model.name}-w4a16", quality=False, progress=progress).out
    return folders


# --- output -------------------------------------------------------------------------------------------------------


def print_table(report: Mapping[str, Any]) -> None:
    """A column for each configuration, then the misses."""
    configs = report["configs"]
    names = dict.fromkeys(name for found in configs.values() for name in found["rows"])
    print(f"{report['model']}, {report['cases']} cases, {report['names']} names")
    print(f"{'':<28}", *(f"{config:>16}" for config in configs))
    for name in names:
        rows = (found["rows"].get(name) for found in configs.values())
        print(f"{name:<28}", *(f"{str(Share(**row)) if row else '-':>16}" for row in rows))
    for config, found in configs.items():
        for miss in found["misses"]:
            expected = "; ".join(f"{call['name']}({json.dumps(call['arguments'])})" for call in miss["expected"])
            got = "; ".join(f"{call['name']}({call['arguments']})" for call in miss["got"])
            print(f"\n{config} {miss['id']} ({miss['topic']}): {miss['question']}")
            print(f"  expected {expected or 'no call'}" + (f" → {miss['answer']}" if expected else ""))
            print(f"  got      {got or 'no call'}, {json.dumps(miss['said'], ensure_ascii=False)} ({miss['outcome']})")


def config_list(text: str) -> list[Config]:
    """Configurations such as "fp16-kv16,w4a16-kv4"."""
    configs = []
    for name in text.split(","):
        match = re.fullmatch(rf"({'|'.join(DTYPES)})-kv(16|8|4)", name.strip())
        if not match:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {{{','.join(DTYPES)}}}-kv{{16,8,4}}")
        configs.append(Config(match[1], int(match[2])))
    return configs


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.toolcalls", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded", help="`embedded`, a folder or a hub id")
    parser.add_argument("--configs", type=config_list, default=DEFAULT_CONFIGS, metavar="LIST", help=DEFAULT_CONFIGS)
    parser.add_argument("--quantized", metavar="DIR", help="the model's W4A16 folder, instead of quantizing it")
    parser.add_argument("--engine", choices=("auto", "turbomind", "pytorch", "cpu"), default="auto")
    parser.add_argument("--names", choices=("held-out", "lab"), default="held-out", help="the tools' names")
    parser.add_argument("--cases", type=_positive, default=600, metavar="N")
    parser.add_argument("--samples", type=int, default=5, metavar="K", help="of each sampled case; 0 for none")
    parser.add_argument("--sampled-cases", type=_positive, default=100, metavar="N")
    parser.add_argument("--concurrency", type=_positive, default=8, metavar="N")
    parser.add_argument("--cache-ratio", type=float, default=0.8, metavar="R", help="the KV cache's share of memory")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="misses to list for each configuration")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report to FILE as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when it was measured, whatever came out, 2 for wrong usage and 3 for trouble with the machine."""
    arguments = _parser().parse_args(argv)

    def keep(report: dict[str, Any]) -> None:
        if arguments.out:
            write_report(report, arguments.out)

    try:
        report = bench(arguments, TerminalProgress(), keep)
    except Lab3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print_table(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
